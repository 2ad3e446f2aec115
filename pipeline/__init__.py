"""Pretraining of multi-token-prediction language models (Gloeckle et al. 2024, arXiv 2404.19737).

Reading order: `config`, `recipe`, `layout` and `inputs` (what a run is, checked), `architecture`, `chunks` and
`devices` (what it costs by formula, and what devices could do), `trace` (where a step's time goes), `layers` and
`model` (trunk and heads), `loss` (the head-sequential backward), `shared_names`, `remote_shards`, `shard_faults`,
`shard_streams`, `shards` and `data` (shards to batches), `optim`, `lease` (whose run directory it is), `distributed`;
`balance` and `stages` (pipelines), `sequence` (Ulysses), `engine` (DeepSpeed around the model), `sharded_state` and
`sharded_files` (what of it is saved, and how it is read); `stop`, `watchdog`, `health` (how a run ends or bends),
`manifest` and `checkpoint`; `dashboard`, `sinks`, `monitor`, `previews` and `rank_log` (what people see), `step_times`
and `profiling` (what is slow), `history`, `loop`, `train`; `audit` (which samples were had), `check_run` and `requeue`
(before and after a job). Before all that, `plan` with `planning` (what it will need and cost). Then, to take the
weights onward, `convert` with `formats`, `generate` with `decoding`, `evaluate` with `evaluation`; and to look at runs,
`report` with `reporting`.
"""
