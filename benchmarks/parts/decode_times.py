"""Times of several ways to decode the same prompts, which take turns, and the floor of an autoregressive step."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.parts.decoders import AUTOREGRESSIVE, TRANSFORMERS, Decoding, bytes_of_a_step, copy_bandwidth
from benchmarks.parts.harness import markdown
from benchmarks.parts.rounds import Spread, ratio, spread
from pipeline.inference.decoding.blockwise import Generation
from pipeline.model.network import MultiTokenModel


@dataclass(frozen=True, kw_only=True)
class Times:
    """The figures of one way to decode, at one batch size."""

    batch_size: int
    decoding: str
    """The name of the way."""
    n_sequences: int
    n_same: int
    """How many of the sequences have the same tokens as in autoregressive decoding."""
    tokens_per_forward: float
    """Over all sequences, without the prompt's forward and its token."""
    accepted: list[float]
    """For each draft of a block, the fraction of times that it was accepted."""
    acceptance_rate: float | None
    """Accepted drafts over all drafts, as LayerSkip reports it; None without drafts."""
    tokens_per_s: Spread
    """Of all sequences, including the prompts' forwards."""
    over_autoregressive: Spread
    """The ratio of tokens per second to autoregressive decoding, within a round."""
    over_transformers: Spread
    """The ratio of tokens per second to transformers' generate, within a round."""

    @property
    def efficiency(self) -> float:
        """The speed-up over autoregressive decoding, divided by the speed-up if all forwards cost the same."""
        return self.over_autoregressive.median / self.tokens_per_forward


def take_times(
    decodings: dict[str, Decoding],
    prompts: Sequence[list[int]],
    *,
    batch_size: int,
    max_gen_len: int,
    warm_up: int,
    repeats: int,
) -> list[Times]:
    """Decode all prompts in every way, in `warm_up` + `repeats` rounds; return the figures of each way.

    Args:
        decodings: the ways to decode, by name.
        prompts: token ids.
        batch_size: sequences decoded at once.
        max_gen_len: tokens to generate for each prompt.
        warm_up: rounds that do not count.
        repeats: rounds that count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in decodings}
    generations: dict[str, list[Generation]] = {name: [] for name in decodings}
    batches = [prompts[first : first + batch_size] for first in range(0, len(prompts), batch_size)]
    rounds = [(index >= warm_up, name) for index in range(warm_up + repeats) for name in decodings]
    for counts, name in tqdm(rounds, desc=f"batches of {batch_size}", unit="run", leave=False, disable=None):
        done = [decodings[name](batch, max_gen_len) for batch in batches]
        if counts:
            seconds[name].append(sum(generation.seconds for generation in done))
            generations[name] += done
    baseline = [ids for generation in generations[AUTOREGRESSIVE][: len(batches)] for ids in generation.token_ids]
    times = []
    for name, done in generations.items():
        accepted, rate = acceptance(done)
        token_ids = [ids for generation in done[: len(batches)] for ids in generation.token_ids]
        times.append(
            Times(
                batch_size=batch_size,
                decoding=name,
                n_sequences=len(prompts),
                n_same=sum(ours == theirs for ours, theirs in zip(token_ids, baseline, strict=True)),
                tokens_per_forward=tokens_per_forward(done),
                accepted=accepted,
                acceptance_rate=rate,
                tokens_per_s=spread([len(prompts) * max_gen_len / taken for taken in seconds[name]]),
                over_autoregressive=ratio(seconds[AUTOREGRESSIVE], seconds[name]),
                over_transformers=ratio(seconds[TRANSFORMERS], seconds[name]),
            )
        )
    return times


@dataclass(frozen=True, kw_only=True)
class Floor:
    """A lower bound of the time of an autoregressive step, and its measured time."""

    batch_size: int
    n_bytes: int
    """The bytes that a step must read: weights and cached positions."""
    copy_bytes_per_s: float
    """The bandwidth of a copy within the device's memory."""
    step_s: float
    """The measured time of a step, without the prompt's forward."""

    @property
    def floor_s(self) -> float:
        """The seconds of a step that only reads."""
        return self.n_bytes / self.copy_bytes_per_s

    def __str__(self) -> str:
        return (
            f"An autoregressive step of batches of {self.batch_size} reads {self.n_bytes / 1e6:,.0f} MB, which takes "
            f"{1e3 * self.floor_s:.3g} ms at the {self.copy_bytes_per_s / 1e9:.1f} GB/s of a copy. The step takes "
            f"{1e3 * self.step_s:.3g} ms, {self.step_s / self.floor_s:.2f} times that."
        )


def measure_floor(
    model: MultiTokenModel,
    decoding: Decoding,
    batch: Sequence[list[int]],
    *,
    max_gen_len: int,
    warm_up: int,
    repeats: int,
) -> Floor:
    """Copy and decode in turns; return the medians.

    The time of a step is the time of a whole generation minus that of its first token, divided by the other tokens.
    """
    steps, bandwidths = [], []
    for index in range(warm_up + repeats):
        bandwidth = copy_bandwidth(model.heads.output.weight.device)
        whole, prompt_alone = decoding(batch, max_gen_len), decoding(batch, 1)
        if index >= warm_up:
            bandwidths.append(bandwidth)
            steps.append((whole.seconds - prompt_alone.seconds) / (max_gen_len - 1))
    n_cached = round(sum(map(len, batch)) / len(batch)) + max_gen_len // 2
    return Floor(
        batch_size=len(batch),
        n_bytes=bytes_of_a_step(model, batch_size=len(batch), n_cached=n_cached),
        copy_bytes_per_s=spread(bandwidths).median,
        step_s=spread(steps).median,
    )


def tokens_per_forward(generations: Sequence[Generation]) -> float:
    """Return tokens over forwards of all sequences, without the prompts' forwards."""
    tokens = sum(len(ids) - 1 for generation in generations for ids in generation.token_ids)
    return tokens / sum(sum(generation.forwards) for generation in generations)


def acceptance(generations: Sequence[Generation]) -> tuple[list[float], float | None]:
    """Return the acceptance rate of each draft of a block, and of all drafts together (None without drafts)."""
    n_blocks = sum(sum(generation.forwards) for generation in generations)
    counts = np.sum([counts for generation in generations for counts in generation.accepted], axis=0)
    rates = (counts / n_blocks).tolist()
    return rates, sum(rates) / len(rates) if rates else None


def table(times: Sequence[Times]) -> str:
    """Return the times as a Markdown table."""
    rows = [
        ["batch", "decoding", "tokens/forward", "drafts accepted", "tokens/s", "over autoregressive",
         "over transformers", "of tokens/forward", "same text"]
    ]  # fmt: skip
    for way in times:
        accepted = " ".join(f"{rate:.2f}" for rate in way.accepted) or "-"
        spreads = [str(way.tokens_per_s), str(way.over_autoregressive), str(way.over_transformers)]
        same = f"{way.n_same} of {way.n_sequences}"
        rows.append(
            [str(way.batch_size), way.decoding, f"{way.tokens_per_forward:.3f}", accepted, *spreads,
             f"{way.efficiency:.3f}", same]
        )  # fmt: skip
    return markdown(rows)


def plot(times: Sequence[Times], path: Path, *, title: str) -> None:
    """Draw the speed-up by batch size and by tokens per forward; on the diagonal, all forwards cost the same."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5), layout="constrained")
    by_batch, by_tokens = figure.subplots(1, 2)
    for name in dict.fromkeys(way.decoding for way in times):
        ways = [way for way in times if way.decoding == name]
        speedups = [way.over_autoregressive for way in ways]
        medians = [speedup.median for speedup in speedups]
        errors = [
            [speedup.median - speedup.lower for speedup in speedups],
            [speedup.upper - speedup.median for speedup in speedups],
        ]
        by_batch.errorbar([way.batch_size for way in ways], medians, yerr=errors, marker="o", capsize=3, label=name)
        by_tokens.errorbar([way.tokens_per_forward for way in ways], medians, yerr=errors, fmt="o", capsize=3)
    by_batch.set(xlabel="sequences per batch", ylabel="speed-up over autoregressive", xscale="log")
    by_batch.set_xticks(batch_sizes := sorted({way.batch_size for way in times}), map(str, batch_sizes))
    by_batch.minorticks_off()
    figure.legend(loc="outside right upper", fontsize="small")
    most = max(way.tokens_per_forward for way in times)
    by_tokens.plot([0, most], [0, most], color="grey", linewidth=1)
    by_tokens.set(xlabel="tokens per forward", ylabel="speed-up over autoregressive")
    figure.suptitle(title)
    figure.savefig(path, dpi=120, format="png")
