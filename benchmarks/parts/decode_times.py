"""Times of ways to decode the same prompts, taken in turns: the ratios of one round share the machine's mood."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.parts.decoders import AUTOREGRESSIVE, TRANSFORMERS, Decoding, bytes_of_a_step, copy_bandwidth
from benchmarks.parts.harness import Spread, markdown, ratio, spread
from pipeline.inference.decoding.blockwise import Generation
from pipeline.model.network import MultiTokenModel


@dataclass(frozen=True, kw_only=True)
class Times:
    """One way to decode, at one batch size.

    n_same: sequences, of `n_sequences`, whose tokens are those of autoregressive decoding.
    tokens_per_forward: over all sequences; the prompt's forward and its token do not count.
    accepted: how often each draft of a block stood, of the times that it was drafted.
    acceptance_rate: drafts that stood over drafts, as LayerSkip reports it; None without drafts.
    tokens_per_s: of all sequences, the prompts' forwards included.
    over_autoregressive, over_transformers: ratios of tokens per second in the same round.
    """

    batch_size: int
    decoding: str
    n_sequences: int
    n_same: int
    tokens_per_forward: float
    accepted: list[float]
    acceptance_rate: float | None
    tokens_per_s: Spread
    over_autoregressive: Spread
    over_transformers: Spread

    @property
    def efficiency(self) -> float:
        """Speed-up over autoregressive decoding, of what it would be if all forwards cost the same."""
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
    """Decode all prompts in every way, `warm_up` + `repeats` times, one way after the other in each round."""
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
    """What bounds an autoregressive step from below, and what it takes.

    n_bytes: that it reads at least, weights and cached positions.
    copy_bytes_per_s: of a copy within the device's memory.
    step_s: without the prompt's forward.
    """

    batch_size: int
    n_bytes: int
    copy_bytes_per_s: float
    step_s: float

    @property
    def floor_s(self) -> float:
        """The step's seconds, if reading were all."""
        return self.n_bytes / self.copy_bytes_per_s

    def __str__(self) -> str:
        return (
            f"An autoregressive step of batches of {self.batch_size} reads {self.n_bytes / 1e6:,.0f} MB: at a copy's "
            f"{self.copy_bytes_per_s / 1e9:.1f} GB/s {1e3 * self.floor_s:.3g} ms. It takes {1e3 * self.step_s:.3g} ms, "
            f"{self.step_s / self.floor_s:.2f} times that."
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
    """Copy and decode in turns; medians. A step is what more tokens take than the first."""
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
    """Return tokens over forwards of all sequences, without the prompts' own."""
    tokens = sum(len(ids) - 1 for generation in generations for ids in generation.token_ids)
    return tokens / sum(sum(generation.forwards) for generation in generations)


def acceptance(generations: Sequence[Generation]) -> tuple[list[float], float | None]:
    """Return how often each draft of a block stood of the times it was drafted, and the share of all drafts."""
    n_blocks = sum(sum(generation.forwards) for generation in generations)
    counts = np.sum([counts for generation in generations for counts in generation.accepted], axis=0)
    rates = (counts / n_blocks).tolist()
    return rates, sum(rates) / len(rates) if rates else None


def table(times: Sequence[Times]) -> str:
    """Return the times as a Markdown table."""
    rows = [
        ["batch", "decoding", "tokens/forward", "drafts that stood", "tokens/s", "over autoregressive",
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
    """Draw the speed-up by batch size and by tokens per forward; on the diagonal all forwards would cost the same."""
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
    by_batch.set(xlabel="sequences in a batch", ylabel="speed-up over autoregressive", xscale="log")
    by_batch.set_xticks(batch_sizes := sorted({way.batch_size for way in times}), map(str, batch_sizes))
    by_batch.minorticks_off()
    figure.legend(loc="outside right upper", fontsize="small")
    most = max(way.tokens_per_forward for way in times)
    by_tokens.plot([0, most], [0, most], color="grey", linewidth=1)
    by_tokens.set(xlabel="tokens per forward", ylabel="speed-up over autoregressive")
    figure.suptitle(title)
    figure.savefig(path, dpi=120, format="png")
