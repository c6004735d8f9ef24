"""Data pipelines: from shards on disk to batches, in an order that is arithmetic."""
