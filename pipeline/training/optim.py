"""What the optimizer is told: parameter groups, and the learning rate as a pure function of the step."""

import math
from typing import Any

from torch import nn

from pipeline.config.schema import OptimConfig


def parameter_groups(model: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Split parameters into matrices, which decay, and norm weights, which do not; without empty groups."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    norms = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": norms, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def learning_rate(step: int, *, optim: OptimConfig, total_steps: int) -> float:
    """Return the learning rate of optimizer step `step` (1-based).

    Linear from 0 to the peak over `warmup_steps`, then a cosine down to `min_lr_ratio` x peak at the last
    step (paper, Table S13 and its text).
    """
    if step <= optim.warmup_steps:
        return optim.lr * step / optim.warmup_steps
    progress = (step - optim.warmup_steps) / (total_steps - optim.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return optim.lr * (optim.min_lr_ratio + (1 - optim.min_lr_ratio) * cosine)
