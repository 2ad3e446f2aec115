"""Every shipped DeepSpeed JSON trains the same model as plain PyTorch in one process: losses, norms, weights."""

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.model import MultiTokenModel, initialise
from pipeline.optim import learning_rate, parameter_groups
from tests.conftest import REPOSITORY, free_port
from tests.distributed.zero_modes import ACCUMULATION, RANKS, STEPS, micro_batches, tiny_config

JSONS = sorted((REPOSITORY / "ds_configs").glob("*.json"))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("zero_modes") / "results.pt"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(RANKS)]
    worker = ["--master_port", str(free_port()), "-m", "tests.distributed.zero_modes", str(out), *map(str, JSONS)]
    command = [*launcher, *worker]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return torch.load(out)


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    """Plain PyTorch: one process, torch's AdamW and clipping, the ranks' batches one after another."""
    config = tiny_config()
    model = MultiTokenModel(config.model)
    initialise(model, seed=config.train.seed)
    optim = config.optim
    groups = parameter_groups(model, weight_decay=optim.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps)
    streams = [micro_batches(rank) for rank in range(RANKS)]
    all_losses, norms = [], []
    for step in range(1, STEPS + 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, optim=optim, total_steps=STEPS)
        batches = [next(stream) for stream, _ in itertools.product(streams, range(ACCUMULATION))]
        losses = [model(batch.tokens_BT, batch.targets_BTN) for batch in batches]
        torch.stack([total for total, _ in losses]).mean().backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), optim.clip)))
        optimizer.step()
        optimizer.zero_grad()
        all_losses.append(torch.stack([by_head for _, by_head in losses]).mean(dim=0))
    return {"losses": all_losses, "norms": norms, "weights": model.state_dict()}


@pytest.mark.parametrize("json_path", JSONS, ids=lambda path: path.stem)
def test_equals_plain_pytorch(json_path: Path, results: dict[str, Any], reference: dict[str, Any]) -> None:
    """fp32 to 1e-5. bf16 keeps 8 bits: the losses within 1 %, the weights within a few steps' rounding."""
    exact = json_path.stem.endswith("fp32")
    result = results[json_path.stem]
    torch.testing.assert_close(result["losses"], reference["losses"], rtol=1e-5 if exact else 1e-2, atol=1e-5)
    assert result["norms"] == pytest.approx(reference["norms"], rel=1e-4 if exact else 3e-2)
    assert min(reference["norms"]) > tiny_config().optim.clip, "the clipping must bite to be tested"
    assert result["weights"].keys() == reference["weights"].keys()
    for name, weight in result["weights"].items():
        expected = reference["weights"][name]
        assert weight.shape == expected.shape
        assert (weight - expected).norm() < (1e-4 if exact else 0.05) * expected.norm(), name
