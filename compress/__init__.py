"""How a model becomes cheaper to run."""
