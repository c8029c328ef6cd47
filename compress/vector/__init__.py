"""Runs of weights as codewords of a codebook."""
