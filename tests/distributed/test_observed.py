"""Previews and gradient norms do not change training, and they show the right values."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.model.network import MultiTokenModel, initialise
from pipeline.training.optim import parameter_groups
from tests.distributed.modes import Case, batch_of, config_of
from tests.distributed.observed import PROMPTS, STEPS
from tests.helpers.ranks import run_on_ranks
from tests.helpers.references import all_logits, naive_greedy, plain_losses

CONFIG = config_of(Case(json=""))
WAYS = ("zero0_fp32", "zero1_bf16", "zero2_fp32", "zero3_fp32", "zero2_fp32-sequence2", "zero1_fp32-tensor2")
WITH_NORMS = [way for way in WAYS if "tensor" not in way]
WITH_PREVIEWS = [way for way in WAYS if "sequence" not in way]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    path = tmp_path_factory.mktemp("observed") / "results.pt"
    run_on_ranks("tests.distributed.observed", path, *WAYS, ranks=2, timeout_s=900)
    return torch.load(path)


@pytest.fixture(scope="module")
def plain() -> list[tuple[dict[str, Tensor], MultiTokenModel]]:
    """Train in plain PyTorch; return for each step the gradients' row norms by block, and the model after it."""
    model, optim, steps = MultiTokenModel(CONFIG.model), CONFIG.optim, []
    initialise(model, seed=CONFIG.train.seed)
    groups = parameter_groups(model, weight_decay=optim.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(optim.beta1, optim.beta2), eps=optim.eps)
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        batch = batch_of(step, CONFIG.model)
        plain_losses(model, batch.tokens_BT, batch.targets_BTN).sum().backward()
        blocks: dict[str, list[torch.nn.Module]] = {"embedding": [model.trunk.tok_embeddings]}
        blocks |= {f"layer_{index:03d}": [layer] for index, layer in enumerate(model.trunk.layers)}
        blocks |= {f"head_{index}": [head] for index, head in enumerate(model.heads.layers, start=1)}
        blocks["unembedding"] = [model.heads.norm, model.heads.output]
        norms = {
            name: torch.stack([row.norm() for part in parts for w in part.parameters() for row in rows_of(w.grad)])
            for name, parts in blocks.items()
        }
        torch.nn.utils.clip_grad_norm_(model.parameters(), optim.clip)
        optimizer.step()
        copy = MultiTokenModel(CONFIG.model)
        copy.load_state_dict(model.state_dict())
        steps.append((norms, copy))
    return steps


def rows_of(gradient: Tensor | None) -> Tensor:
    assert gradient is not None
    return gradient.view(-1, gradient.shape[-1])


@pytest.mark.parametrize("way", WAYS)
def test_losses_are_bit_identical(results: dict[str, list[dict[str, Any]]], way: str) -> None:
    alone, watched = results[way]
    assert all(torch.equal(*losses) for losses in zip(alone["losses"], watched["losses"], strict=True))
    assert [norm for norm, _ in alone["norms"]] == [norm for norm, _ in watched["norms"]]
    assert not any(of_blocks for _, of_blocks in alone["norms"])


@pytest.mark.parametrize("way", WITH_NORMS)
def test_norms_of_rows_match_plain_pytorch(
    results: dict[str, list[dict[str, Any]]], plain: list[tuple[dict[str, Tensor], MultiTokenModel]], way: str
) -> None:
    """Together they give the norm of the whole gradient, which DeepSpeed computes by itself."""
    for (total, of_blocks), (expected, _) in zip(results[way][1]["norms"], plain, strict=True):
        assert of_blocks.keys() == expected.keys()
        for block, rows_R in of_blocks.items():
            largest = float(expected[block].max())
            rtol, atol = (5e-2, 2e-2 * largest) if "bf16" in way else (1e-4, 1e-6 * largest)
            torch.testing.assert_close(rows_R, expected[block], rtol=rtol, atol=atol)
        whole = math.hypot(*(float(rows_R.norm()) for rows_R in of_blocks.values()))
        assert whole == pytest.approx(total, rel=1e-2 if "bf16" in way else 1e-5)


@pytest.mark.parametrize("way", WITH_PREVIEWS)
def test_previews_show_the_trained_models_predictions(
    results: dict[str, list[dict[str, Any]]], plain: list[tuple[dict[str, Tensor], MultiTokenModel]], way: str
) -> None:
    watched = results[way][1]
    for texts, (ids_BTN, best_BTN), (_, model) in zip(watched["texts"], watched["seen"], plain, strict=True):
        with torch.no_grad():
            expected = all_logits(model, torch.tensor([PROMPTS[1]])).softmax(-1)
        rel, abs_ = (0, 2e-2) if "bf16" in way else (1e-3, 1e-5)
        torch.testing.assert_close(best_BTN, expected.amax(-1), rtol=rel, atol=abs_)
        if "bf16" not in way:  # bf16 may decide near-ties differently
            assert torch.equal(ids_BTN, expected.argmax(-1))
            assert texts == [[*prompt, *naive_greedy(model, prompt, n_tokens=4)] for prompt in PROMPTS]
