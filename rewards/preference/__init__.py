"""What a completion is worth to those whose preferences a model learned."""
