"""From text to shards: documents are read, filtered, deduplicated, tokenized and packed into windows for training."""
