"""The inputs of a run: recipe, DeepSpeed JSON and shard metadata, read and checked before anything is allocated."""
