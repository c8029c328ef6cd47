"""What a learner's parameters, gradients and optimiser live in: one process (`torch`), or several that share them
(`deepspeed`)."""
