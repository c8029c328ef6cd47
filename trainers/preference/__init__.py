"""A policy from pairs of answers: `job: preference`."""
