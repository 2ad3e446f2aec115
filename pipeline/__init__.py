"""Pretraining of multi-token-prediction language models (Gloeckle et al. 2024, arXiv 2404.19737).

Reading order: `config`, `recipe`, `layout` and `inputs` (what a run is, checked), `architecture`, `layers` and `model`
(trunk and heads), `loss` (the head-sequential backward), `shared_names`, `shards` and `data` (shards to batches),
`optim`, `distributed`; `balance` and `stages` (pipelines), `sequence` (Ulysses), `engine` (DeepSpeed around the model),
`sharded_state` and `sharded_files` (what of it is saved, and how it is read); `stop`, `watchdog`, `health` (how a run
ends or bends), `manifest` and `checkpoint`, `monitor`, `history`, `loop`, `train`; `audit` (which samples were had). Then,
to take the weights onward, `convert` with `formats`, `generate` with `decoding`, and `evaluate` with `evaluation`; and
to look at runs, `report` with `reporting`.
"""
