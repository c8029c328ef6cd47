"""Kinds of heads (`rollout.decoding.heads`), one a file, made of a target's configuration and the options that a recipe of
`job: heads` gives beside the name."""
