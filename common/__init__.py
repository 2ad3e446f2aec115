"""What data_prep and pipeline both need: the command line, whole-file writes, tokenizers, shards in S3; no torch."""
