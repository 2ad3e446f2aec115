"""A stand-in for DeepSpeed's engine without ZeRO, for tests of what reads its state."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn


def engine_of(module: nn.Module) -> Any:
    """Return an object with the attributes that DeepSpeed's engine has under ZeRO-0: the module and its AdamW."""
    return SimpleNamespace(module=module, optimizer=torch.optim.AdamW(module.parameters(), lr=0.1))
