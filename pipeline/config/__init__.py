"""What a run is: its recipe, its DeepSpeed JSON and its shards, read and checked before anything is allocated."""
