"""Gradient training of what an earlier method left, towards the dense model."""
