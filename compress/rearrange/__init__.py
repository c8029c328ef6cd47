"""The same weights in another architecture (`compress/architectures`)."""
