"""Staging all weights in mapped files, whose space is allocated first."""

import os
from pathlib import Path

import pytest
import torch

from pipeline.weights.formats.export import staged
from tests.helpers.exports import in_memory
from tests.helpers.references import tiny_model


def test_staged_weights_are_mapped_from_files(tmp_path: Path) -> None:
    weights = staged(in_memory(tiny_model()), tmp_path, torch.bfloat16)
    for name, weight in tiny_model().state_dict().items():
        assert torch.equal(weights[name], weight.bfloat16())
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert sum(sizes) == sum(2 * weight.numel() for weight in weights.values())
    maps = Path("/proc/self/maps").read_text()
    assert all(str(path) in maps for path in tmp_path.iterdir())


def test_a_full_disk_raises_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without allocated space, the first write to a mapped page would end the process with SIGBUS."""

    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        staged(in_memory(tiny_model()), tmp_path, None)
