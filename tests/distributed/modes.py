"""Trains tiny models in many modes on real ranks and saves the results; started by test_modes.py under torchrun.

usage: modes.py FOLDER CASES.json

A case is a model, a way of distributing it, and a way of splitting the batch. A step has the same sequences in every
case, given to replicas and micro batches in order; in one step, the loss of one micro batch is infinite. Each case
writes FOLDER/<name>/ with checkpoints (the state after half of the steps and after all of them) and result.pt.
"""

import functools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import pipeline.model.network
from pipeline.config.deepspeed import checked, deepspeed_problems, fill_deepspeed_config, load_deepspeed_config
from pipeline.config.model import ModelConfig
from pipeline.config.schema import Config, DataConfig, OptimConfig, ParallelConfig, TrainConfig
from pipeline.data.batches import Batch
from pipeline.model.formulas import head_inputs
from pipeline.model.network import Heads, weight_shapes
from pipeline.runtime.collectives import mean_over_ranks
from pipeline.runtime.world import world_from_environment
from pipeline.training.build import build_engine
from pipeline.training.optim import learning_rate
from pipeline.training.process_group import process_group
from pipeline.weights.checkpoint.state import HostCopies, save_state, weight_reader

STEPS, SEQUENCES, SEQ_LEN = 8, 48, 16
INFINITE_STEP = 3


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way to train."""

    json: str
    """Name of a DeepSpeed JSON in ds_configs/."""
    ranks: int = 2
    stages: int = 1
    """Pipeline stages."""
    sequence: int = 1
    """Ranks that share a sequence."""
    tensor: int = 1
    """Ranks that share each layer's matrices."""
    accumulation: int = 4
    """Micro batches per step and rank."""
    n_future_tokens: int = 4
    recompute: bool = False
    """Activation checkpointing."""
    compile: bool = False
    """torch.compile."""
    naive: bool = False
    """All heads at once instead of head-sequential."""
    model: dict[str, Any] = field(default_factory=dict)
    """Other fields of the model."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Further settings of the DeepSpeed JSON, by dotted key."""
    resume: str = ""
    """Name of the case from whose checkpoint after half of the steps this case continues."""

    @property
    def name(self) -> str:
        """Name of the case in tests and of its folder."""
        parts = [self.json, f"{self.ranks}ranks", f"{self.stages}stages" if self.stages > 1 else ""]
        parts += [f"{self.sequence}sequence"] if self.sequence > 1 else []
        parts += [f"{self.tensor}tensor"] if self.tensor > 1 else []
        parts += [f"accumulation{self.accumulation}", f"n{self.n_future_tokens}"]
        parts += [flag for flag in ("recompute", "compile", "naive") if getattr(self, flag)]
        parts += [f"{key}_{value}" for key, value in self.model.items()]
        parts += ["tuned"] if self.settings else []
        parts += [f"from_{self.resume}"] if self.resume else []
        return "-".join(filter(None, parts))

    @property
    def replicas(self) -> int:
        """Number of model replicas."""
        return self.ranks // (self.stages * self.sequence * self.tensor)

    @property
    def first_step(self) -> int:
        """First step that this case runs itself."""
        return STEPS // 2 + 1 if self.resume else 1


def config_of(case: Case) -> Config:
    """Return the recipe of a case: 9 layers, of which 1 to 8 are heads, and a clipping norm that is exceeded."""
    model = ModelConfig(
        dim=32, n_layers=9, n_heads=4, n_kv_heads=2, vocab_size=64, multiple_of=16,
        n_future_tokens=case.n_future_tokens, **case.model,
    )  # fmt: skip
    train = TrainConfig(
        total_tokens=STEPS * SEQUENCES * SEQ_LEN,
        batch_tokens=SEQUENCES * SEQ_LEN,
        micro_batch_size=SEQUENCES // (case.replicas * case.accumulation),
        activation_checkpointing=case.recompute,
        compile=case.compile,
    )
    return Config(
        model=model,
        data=DataConfig(seq_len=SEQ_LEN),
        train=train,
        optim=OptimConfig(lr=3e-3, warmup_steps=1, clip=0.5, eps=1e-6),  # with 1e-8, Adam would magnify rounding errors
        parallel=ParallelConfig(
            pipeline_stages=case.stages, sequence_parallel_size=case.sequence, tensor_parallel_size=case.tensor
        ),
    )


def deepspeed_config_of(case: Case) -> dict[str, Any]:
    """Return the filled DeepSpeed JSON of a case, after the checks that a run makes of it."""
    config, values = config_of(case), load_deepspeed_config(Path("ds_configs") / f"{case.json}.json")
    if "zero3" in case.json:  # with the shipped threshold, weights as small as these would stay on every rank
        values["zero_optimization"]["stage3_param_persistence_threshold"] = 100
    for key, value in case.settings.items():
        *sections, last = key.split(".")
        functools.reduce(lambda section, name: section.setdefault(name, {}), sections, values)[last] = value
    found = checked(values)
    filled, problems = fill_deepspeed_config(found.values, config, data_ranks=case.replicas)
    problems += found.problems + found.without_effect + deepspeed_problems(found.values, config.parallel)
    assert not problems, problems
    return filled


def batch_of(step: int, model: ModelConfig) -> Batch:
    """Return all sequences of one step; they depend only on the step."""
    generator = torch.Generator().manual_seed(1000 + step)
    shape = (SEQUENCES, SEQ_LEN)
    tokens = torch.randint(model.vocab_size, shape, generator=generator)
    targets = torch.randint(model.vocab_size, (*shape, 8), generator=generator)
    return Batch(tokens, targets[..., : model.n_future_tokens])


def with_infinite_step(cross_entropy: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return `cross_entropy` with an infinite loss, but finite gradients, for one micro batch.

    It is the micro batch with the first sequence of INFINITE_STEP, recognised by the next-token head's first targets.
    """

    def infinite_or_not(hidden_BTD: Tensor, unembedding_VD: Tensor, targets_BT: Tensor) -> Tensor:
        loss = cross_entropy(hidden_BTD, unembedding_VD, targets_BT)
        return loss + torch.inf if is_infinite(targets_BT) else loss

    return infinite_or_not


def is_infinite(targets_BT: Tensor) -> bool:
    """Return whether the loss of these targets must be infinite."""
    marks = batch_of(INFINITE_STEP, ModelConfig(vocab_size=64, n_future_tokens=1)).targets_BTN[0, :8, 0]
    return torch.equal(targets_BT[0, :8], marks)


def naive_forward(heads: Heads, hidden_PBTD: Tensor, targets_BTN: Tensor) -> tuple[Tensor, Tensor]:
    """Compute all heads' logits at once, for one ordinary backward; replaces the head-sequential `Heads.forward`."""
    outputs = dict(zip(head_inputs(heads.config), heads._run(list(hidden_PBTD.unbind()))[1:], strict=True))
    logits = [heads.unembedding(head)(heads.norm(outputs[head])).float() for head in sorted(outputs)]
    losses = [F.cross_entropy(x.flatten(0, 1), targets_BTN[..., head].flatten()) for head, x in enumerate(logits)]
    loss = torch.stack(losses).sum()
    return loss * (torch.inf if is_infinite(targets_BTN[..., 0]) else 1), torch.stack(losses).detach()


def train(case: Case, folder: Path) -> None:
    """Train one case, perhaps from a checkpoint of another; write checkpoints and results to its folder."""
    config, world, own_folder = config_of(case), world_from_environment(), folder / case.name
    engine = build_engine(config, deepspeed_config_of(case), device=torch.device("cpu"))
    if case.resume:
        engine.load(folder / case.resume / f"step_{case.first_step - 1}", updates=case.first_step - 2)  # one skipped
    batches = micro_batches(case, replica=world.rank // config.parallel.ranks_per_replica)
    losses, norms, copies = [], [], HostCopies()
    for step in range(case.first_step, STEPS + 1):
        rate = learning_rate(step, optim=config.optim, total_steps=STEPS)
        result = engine.train_step(batches, learning_rate=rate)
        losses.append(mean_over_ranks(result.losses_N))
        norms.append(result.gradient_norm)
        if step in (STEPS // 2, STEPS):
            save_state(engine.state(copies=copies), own_folder / f"step_{step}")
    if world.is_main:
        shapes = weight_shapes(config.model)
        read = weight_reader(own_folder / f"step_{STEPS}", shapes)
        weights = {name: read(name) for name in shapes}
        torch.save({"losses": losses, "norms": norms, "weights": weights}, own_folder / "result.pt")


def micro_batches(case: Case, *, replica: int) -> Iterator[Batch]:
    """Yield the micro batches of one replica: its part of each step's batch."""
    config = config_of(case)
    size = config.train.micro_batch_size
    for step in range(case.first_step, STEPS + 1):
        batch = batch_of(step, config.model)
        for micro_step in range(case.accumulation):
            start = (micro_step * case.replicas + replica) * size
            yield Batch(batch.tokens_BT[start : start + size], batch.targets_BTN[start : start + size])


def main() -> None:
    """Run all cases in this one process, because importing DeepSpeed is slow; tensor parallelism and pipelines last.

    DeepSpeed keeps the process groups of both for the whole process, and engines without them would then fail.
    """
    folder, cases = Path(sys.argv[1]), [Case(**values) for values in json.loads(Path(sys.argv[2]).read_text())]
    sequential_forward = Heads.forward
    pipeline.model.network.cross_entropy = with_infinite_step(pipeline.model.network.cross_entropy)
    with process_group(world_from_environment()):
        for case in sorted(cases, key=lambda case: (case.stages, case.tensor)):
            Heads.forward = naive_forward if case.naive else sequential_forward  # type: ignore[method-assign, assignment]
            torch._dynamo.reset()  # each case compiles new graphs, and torch.compile allows 8
            train(case, folder)


def as_json(cases: list[Case]) -> str:
    """Return the content of CASES.json."""
    return json.dumps([asdict(case) for case in cases])


if __name__ == "__main__":
    main()
