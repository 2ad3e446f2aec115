"""The optimizer's parameter groups, and the learning rate as a pure function of the step."""

import math
from typing import Any

from torch import nn

from pipeline.config.schema import OptimConfig


def parameter_groups(model: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Return the non-empty parameter groups: matrices, which have weight decay, and norm weights, which have none."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    norms = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": norms, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def learning_rate(step: int, *, optim: OptimConfig, total_steps: int) -> float:
    """Return the learning rate of optimizer step `step` (1-based).

    The schedule rises linearly from 0 to `lr` over `warmup_steps`, then falls along a cosine to `min_lr_ratio` times
    `lr` at the last step (paper, Table S13 and its text).
    """
    if step <= optim.warmup_steps:
        return optim.lr * step / optim.warmup_steps
    progress = (step - optim.warmup_steps) / (total_steps - optim.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return optim.lr * (optim.min_lr_ratio + (1 - optim.min_lr_ratio) * cosine)
