"""Model classes of our own, by their `model_type`: the folder is the registry."""
