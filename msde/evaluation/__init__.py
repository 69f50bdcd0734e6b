"""Measures of generated molecules against references."""
