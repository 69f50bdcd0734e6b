"""The training loop, its engine, and what happens around a step."""
