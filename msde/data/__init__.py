"""From shards on disk to batches on a device."""
