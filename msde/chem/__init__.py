"""Molecules as RDKit knows them, and as plain arrays."""
