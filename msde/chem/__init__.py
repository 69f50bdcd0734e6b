"""Molecules: from text and RDKit to plain arrays, and back."""
