"""Command-line tools that turn molecular data sets into shards."""
