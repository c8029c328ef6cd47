"""One advantage estimator a file: `name(batch: GradedBatch, *, options…) -> Advantages`. The recipe names the file."""
