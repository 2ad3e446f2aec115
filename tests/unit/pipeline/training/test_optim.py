"""The learning-rate schedule against the paper's description, and which parameters decay."""

import pytest
import torch

from pipeline.config.model import ModelConfig
from pipeline.config.schema import OptimConfig
from pipeline.model.network import MultiTokenModel
from pipeline.training.optim import learning_rate, parameter_groups

OPTIM = OptimConfig(lr=3e-4, min_lr_ratio=0.03, warmup_steps=2000)


@pytest.mark.parametrize(
    ("step", "expected"),
    [(1, 1.5e-7), (1000, 1.5e-4), (2000, 3e-4), (13_500, 3e-4 * (1 + 0.03) / 2), (25_000, 9e-6)],
)
def test_warm_up_peak_middle_and_end(step: int, expected: float) -> None:
    assert learning_rate(step, optim=OPTIM, total_steps=25_000) == pytest.approx(expected, rel=1e-12)


def test_decay_matches_torch_cosine_annealing() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=3e-4)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100, eta_min=9e-6)
    ours = OptimConfig(lr=3e-4, min_lr_ratio=0.03, warmup_steps=0)
    for step in range(1, 101):
        optimizer.step()
        reference.step()
        assert learning_rate(step, optim=ours, total_steps=100) == pytest.approx(reference.get_last_lr()[0], rel=1e-6)


def test_norms_do_not_decay_and_every_parameter_is_in_a_group() -> None:
    with torch.device("meta"):
        model = MultiTokenModel(ModelConfig(dim=32, n_layers=3, n_heads=4, n_future_tokens=2))
    decaying, steady = parameter_groups(model, weight_decay=0.1)
    assert (decaying["weight_decay"], steady["weight_decay"]) == (0.1, 0.0)
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)] for p in steady["params"]} == {name for name in names.values() if "norm" in name}
    assert len(decaying["params"]) + len(steady["params"]) == len(names)
