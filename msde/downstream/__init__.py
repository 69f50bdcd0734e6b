"""Fine-tuning: tasks, splits, metrics, heads and the loop."""
