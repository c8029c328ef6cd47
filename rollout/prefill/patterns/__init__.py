"""Which blocks of keys each head reads; every file is a pattern, by its name in a recipe (`rollout.prefill.pattern.Pattern`)."""
