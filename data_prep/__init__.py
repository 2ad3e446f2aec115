"""From text to shards: sources of documents, filtered, tokenized and packed into the windows that `pipeline` trains on.

Reading order: `documents` (the types), `mixture`, `trees`, `standard_input`, `sources` (what the user named to pieces,
work cut into parts), `readers`, `parquet`, `huggingface` (pieces to documents), `languages`, `rules`, `ngrams`,
`decontaminate`, `filters` (which documents stay), `verdicts` (what becomes of each, and how often), `fim`, `encoding`
(a document to tokens), `document_options`, `shuffling`, `packing` (token streams to overlapping windows), `mds_writer`
(windows to shards), `part_writer` (one part to shards: what a worker does), `deduplicate` with `near_index` (the pass
before it), `report` (what was kept and dropped), `workers` (the processes), `shard_folder` (who may write where, and
when it is finished), `shard_reader` and `sample` (what is in it), `minhash_steps` (deduplication past one machine), and
the commands: `deduplicate_corpus`, `write_shards` with `write_arguments`, `merge_shards`, `upload_shards`,
`check_shards`, `stats`, `report`, `train_tokenizer`.
"""
