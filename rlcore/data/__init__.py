"""Problems: where they come from, how they are mixed, and the refusal to train on what is evaluated."""
