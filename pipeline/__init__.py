"""Pretraining of multi-token-prediction language models (Gloeckle et al. 2024, arXiv 2404.19737).

Reading order: `config`, `recipe` and `inputs` (what a run is, checked), `model` (trunk and heads), `loss` (the
head-sequential backward), `data` (shards to batches), `optim`, `distributed`, `engine` (the only module that knows
DeepSpeed), `stop`, `checkpoint`, `monitor`, `train` (the loop); then, to take the weights onward, `convert`,
`sampling`, `decode` and `generate`.
"""
