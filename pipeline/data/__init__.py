"""Shards to batches: a streaming dataset that verifies each shard, and a position that can be resumed exactly."""
