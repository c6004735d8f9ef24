"""Modalities: each turns a shard member into a sequence of units, and units into vectors."""
