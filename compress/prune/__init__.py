"""Weights left out: which, and what the others make up for."""
