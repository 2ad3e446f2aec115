"""From text to shards: sources of documents, filtered, tokenized and packed into the windows that `pipeline` trains on.

Reading order: `documents` (sources to documents, work cut into parts), `languages`, `rules`, `ngrams`, `decontaminate`,
`filters` (which documents stay), `packing` (token streams to overlapping windows), `mds_writer` (windows to shards),
`part_writer` (one part to shards: what a worker does), `deduplicate` with `near_index` (the pass before it), `report`
(what was kept and dropped), `workers` (the processes), `shard_folder` (who may write where, and when it is finished),
and the commands: `write_shards`, `check_shards`, `report`, `train_tokenizer`.
"""
