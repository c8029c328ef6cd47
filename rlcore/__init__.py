"""rlcore: RL post-training of reasoning models in which a reward is a first-class, inspectable thing."""

__version__ = "0.1.0"
