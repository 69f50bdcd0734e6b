"""Samples of molecules from score networks."""
