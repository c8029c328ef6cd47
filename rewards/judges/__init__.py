"""Reward models by what they read and where their scores stand: a registry of its own, beside that of reward components."""
