"""Weights rounded to a table of levels, a scale for each run of a row."""
