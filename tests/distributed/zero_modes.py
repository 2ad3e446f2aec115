"""Trains one tiny model under each given DeepSpeed JSON, on real ranks; started by test_zero_modes.py.

usage: zero_modes.py OUT.pt JSON...      (under torchrun)
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from pipeline.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from pipeline.data import Batch
from pipeline.distributed import from_main, mean_over_ranks, world_from_environment
from pipeline.engine import Engine, consolidated_weights, initialise_distributed
from pipeline.inputs import fill_deepspeed_config, read_deepspeed_config
from pipeline.optim import learning_rate

RANKS, STEPS, ACCUMULATION = 2, 4, 2
SEQ_LEN, MICRO_BATCH = 16, 2


def tiny_config() -> Config:
    """The run that every mode repeats: 4 heads, clipping that bites, accumulation of 2."""
    batch_tokens = SEQ_LEN * MICRO_BATCH * RANKS * ACCUMULATION
    model = ModelConfig(dim=32, n_layers=6, n_heads=4, vocab_size=256, n_future_tokens=4, multiple_of=16)
    train = TrainConfig(total_tokens=STEPS * batch_tokens, batch_tokens=batch_tokens, micro_batch_size=MICRO_BATCH)
    optim = OptimConfig(lr=1e-2, warmup_steps=1, clip=0.5)
    return Config(model=model, data=DataConfig(seq_len=SEQ_LEN), train=train, optim=optim)


def micro_batches(rank: int) -> Iterator[Batch]:
    """Random batches that depend on the rank and on their place alone."""
    config = tiny_config()
    generator = torch.Generator().manual_seed(100 + rank)
    while True:
        shape = (MICRO_BATCH, SEQ_LEN)
        tokens = torch.randint(config.model.vocab_size, shape, generator=generator)
        targets = torch.randint(config.model.vocab_size, (*shape, config.model.n_future_tokens), generator=generator)
        yield Batch(tokens, targets)


def train_under(json_path: Path, scratch: Path) -> dict[str, list[Tensor] | list[float] | dict[str, Tensor]]:
    """Train, save, and return per-step losses and gradient norms and the consolidated weights."""
    config, world = tiny_config(), world_from_environment()
    deepspeed_config, problems = fill_deepspeed_config(read_deepspeed_config(json_path), config, data_ranks=RANKS)
    assert not problems, problems
    engine = Engine(config, deepspeed_config, device=torch.device("cpu"))
    batches = micro_batches(world.rank)
    losses, norms = [], []
    for step in range(1, STEPS + 1):
        rate = learning_rate(step, optim=config.optim, total_steps=STEPS)
        losses.append(mean_over_ranks(engine.train_step(batches, learning_rate=rate)))
        norms.append(engine.gradient_norm)
    folder = scratch / json_path.stem
    engine.save(folder)
    weights = consolidated_weights(folder) if world.is_main else {}
    return {"losses": losses, "norms": norms, "weights": weights}


def main() -> None:
    """Run every mode in this one process: importing DeepSpeed is the slow part."""
    out, *json_paths = (Path(argument) for argument in sys.argv[1:])
    initialise_distributed(world_from_environment())
    scratch = Path(from_main(tempfile.mkdtemp()))
    results = {path.stem: train_under(path, scratch) for path in json_paths}
    if world_from_environment().is_main:
        torch.save(results, out)


if __name__ == "__main__":
    main()
