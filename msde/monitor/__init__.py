"""What a run reports: curves, events, FLOPs and traces."""
