"""Entry points: each parses its arguments, builds the configuration and makes one call."""
