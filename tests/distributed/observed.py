"""Trains with and without previews and gradient norms, on real ranks; started by test_observed.py under torchrun.

usage: observed.py RESULT.pt JSON...     names in ds_configs/, perhaps followed by -sequence2 or -tensor2
"""

import sys
from typing import Any

import torch

from pipeline.monitoring.previews import continued
from pipeline.runtime.collectives import mean_over_ranks
from pipeline.runtime.world import world_from_environment
from pipeline.training.build import build_engine
from pipeline.training.process_group import process_group
from tests.distributed.modes import Case, config_of, deepspeed_config_of, micro_batches

STEPS = 3
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8]]


def train(case: Case, *, rank: int, watched: bool) -> dict[str, Any]:
    """Train some steps of a case; return losses and norms, and the previews if it is watched."""
    engine = build_engine(config_of(case), deepspeed_config_of(case), device=torch.device("cpu"))
    batches = micro_batches(case, replica=rank // (case.sequence * case.tensor))
    losses, norms, texts, seen = [], [], [], []
    for _ in range(STEPS):
        result = engine.train_step(batches, learning_rate=1e-3, takes_grad_norms=watched)
        losses.append(mean_over_ranks(result.losses_N))
        norms.append((result.gradient_norm, result.grad_norms))
        if watched and case.sequence == 1:
            texts.append(continued(PROMPTS, engine.predict, n_tokens=4))
            seen.append(engine.predict(torch.tensor([PROMPTS[1]])))
    return {"losses": losses, "norms": norms, "texts": texts, "seen": seen}


def main() -> None:
    """Train each case twice, without and with being watched."""
    results, world = {}, world_from_environment()
    with process_group(world):
        for name in sys.argv[2:]:
            json, _, how = name.partition("-")
            case = Case(json=json, accumulation=2, **({how[:-1]: 2} if how else {}))  # type: ignore[arg-type]
            results[name] = [train(case, rank=world.rank, watched=watched) for watched in (False, True)]
    if world.is_main:
        torch.save(results, sys.argv[1])


if __name__ == "__main__":
    main()
