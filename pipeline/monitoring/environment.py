"""The software and the device that a run uses: package versions, git commit and device name."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch


def environment() -> dict[str, Any]:
    """Return what a result depends on besides the config: versions and git commit. No variables, no host."""
    packages = ("torch", "deepspeed", "mosaicml-streaming", "numpy", "sentencepiece")
    return {
        "python": sys.version.split()[0],
        "packages": {name: metadata.version(name) for name in packages},
        "device": device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "git_commit": _git_commit(),
    }


def device_name(device: torch.device) -> str:
    """Return what the driver calls the device; "cpu" for the CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
