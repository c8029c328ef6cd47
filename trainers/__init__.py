"""How a model learns: the loop, the learner, and one small file per advantage and loss."""
