"""Reports of a run: curves, events, FLOPs and traces."""
