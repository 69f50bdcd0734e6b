"""The stages of a conversion: chunks, processes, parts of shards, progress."""
