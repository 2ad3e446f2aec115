"""The software and the device that a run uses: package versions, git commit and device name."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "deepspeed", "mosaicml-streaming", "numpy", "sentencepiece")


def environment() -> dict[str, Any]:
    """Return the versions, device and git commit that a run's result depends on; no variables and no host name."""
    return {
        "python": sys.version.split()[0],
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "device": device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "git_commit": _git_commit(),
    }


def device_name(device: torch.device) -> str:
    """Return the driver's name for the device, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
