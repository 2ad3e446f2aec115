"""Pretraining of multi-token-prediction language models (Gloeckle et al. 2024, arXiv 2404.19737).

Reading order: `config` (what a run is), `model` (trunk and heads), `loss` (the head-sequential
backward), `data` (shards to batches), `optim`, `engine` (the only module that knows DeepSpeed),
`checkpoint`, `monitor`, `train` (the loop); then `convert`, `decode` and `generate`, which take the
weights onward.
"""
