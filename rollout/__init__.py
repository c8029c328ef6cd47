"""Where completions come from: engines, the sampler they share, and how new weights reach them."""
