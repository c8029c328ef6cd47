"""Which blocks of keys each head reads; every file is a `Pattern`, by its name in a recipe."""
