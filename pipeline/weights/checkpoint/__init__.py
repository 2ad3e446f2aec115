"""Training checkpoints: the whole state of a run, verified by a manifest and loadable with any parallel layout."""
