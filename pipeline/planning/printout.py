"""The plan as text, and its memory as a picture."""

from dataclasses import asdict
from pathlib import Path

from common.files import written_whole
from common.wording import counted
from pipeline.planning.alternatives import Setup
from pipeline.planning.clusters import SOURCES, Cluster, reserved_bytes, usable_bytes
from pipeline.planning.estimate import DAY_S, HOUR_S, Estimate, shortage_advice

N_SHOWN = 12


def plan_as_text(setup: Setup, setups: list[Setup], found: Estimate, cluster: Cluster) -> str:
    """Return the whole plan as text; `setups` are the alternatives, and `found` is the estimate for `setup`."""
    sections = [
        _model(setup, found),
        _memory(setup, setups, cluster),
        _setups(setup, setups),
        _time(setup, found, cluster),
        _checkpoints(setup, found),
        _data(found),
        _assumptions(setup, cluster),
    ]
    return "\n\n".join(sections)


def _model(setup: Setup, found: Estimate) -> str:
    flops = found.flops_per_token
    parts = ", ".join(f"{name} {part / flops.total:.1%}" for name, part in asdict(flops).items() if name != "attention")
    return (
        f"model        {found.parameters:,} parameters, n = {setup.config.model.n_future_tokens}\n"
        f"FLOPs        {flops.total / 1e9:.2f} GFLOP per token, forward and backward: {parts}; "
        f"products inside attention are {flops.attention / flops.total:.1%} of all"
    )


def _memory(setup: Setup, setups: list[Setup], cluster: Cluster) -> str:
    moments, usable = setup.moments, usable_bytes(cluster.gpu, cluster.assumed)
    reserved = reserved_bytes(cluster.assumed)
    fragmented = cluster.gpu.memory_bytes - reserved - usable
    by_moment = [memory.parts() | {"total": memory.device} for memory in moments]
    lines = [
        "memory       GB on the fullest rank, at each moment that may be its fullest",
        f"  {'':<12}" + "".join(f"{memory.moment:>11}" for memory in moments),
        *(f"  {name:<12}" + "".join(f"{parts[name] / 1e9:>11.2f}" for parts in by_moment) for name in by_moment[0]),
        f"  {usable / 1e9:.2f} of {cluster.gpu.memory_bytes / 1e9:.0f} GB are available for tensors; "
        f"{reserved / 1e9:.2f} GB are reserved for context and libraries, {fragmented / 1e9:.2f} GB for fragmentation",
    ]
    if setup.memory.host:
        lines.append(f"  in addition, {setup.memory.host / 1e9:.2f} GB of host memory per rank")
    lines.append(f"  {_fit(setup) if setup.fits else shortage_advice(setup, cluster, setups)}")
    return "\n".join(lines)


def _fit(setup: Setup) -> str:
    return f"fits: at most {setup.memory.device / 1e9:.2f} GB, at the moment '{setup.memory.moment}'"


def _setups(setup: Setup, setups: list[Setup]) -> str:
    lines = [
        f"setups       {len(setups)} possible, {sum(other.fits for other in setups)} fit; the fastest (> is yours):",
        f"    {'DeepSpeed JSON':<19} {'stages':>6} {'micro':>5} {'recompute':>9} {'GB':>7} {'tokens/s':>11}  limit",
    ]
    shown = setups[:N_SHOWN]
    mine = [other for other in setups if _same(other, setup)]
    for other in [*shown, *(extra for extra in mine if extra not in shown)]:
        train = other.config.train
        lines.append(
            f"  {'>' if _same(other, setup) else ' '} {other.json:<19} {other.config.parallel.pipeline_stages:>6} "
            f"{train.micro_batch_size:>5} {'yes' if train.activation_checkpointing else 'no':>9} "
            f"{other.memory.device / 1e9:>7.1f} {other.tokens_per_s:>11,.0f}  "
            f"{other.time.limit() if other.fits else 'does not fit'}"
        )
    return "\n".join(lines)


def _same(other: Setup, setup: Setup) -> bool:
    return other.json == setup.json and other.config == setup.config


def _time(setup: Setup, found: Estimate, cluster: Cluster) -> str:
    seconds = asdict(setup.time)
    hidden_s = seconds.pop("hidden_s")
    shares = ", ".join(f"{name.removesuffix('_s')} {part_s / found.step_s:.1%}" for name, part_s in seconds.items())
    return (
        f"time         {found.tokens_per_s:,.0f} tokens/s, {found.step_s:.2f} s per step ({shares})\n"
        f"             {hidden_s:.2f} s of communication per step are hidden behind computing (perfect overlap)\n"
        f"             MFU {found.mfu:.1%}\n"
        f"             {counted(found.steps, 'step')}: {_duration(found.days)}, {found.gpu_hours:,.0f} GPU-hours on "
        f"{counted(cluster.world_size, 'GPU')} ({cluster.gpu.name})\n"
        f"cost         {found.usd:,.0f} USD, {found.energy_kwh / 1000:,.1f} MWh"
    )


def _duration(days: float) -> str:
    return f"{days:,.1f} days" if days >= 1 else f"{days * DAY_S / HOUR_S:.1f} hours"


def _checkpoints(setup: Setup, found: Estimate) -> str:
    every = setup.config.checkpoint.every_steps
    return (
        f"checkpoints  {found.checkpoint_bytes / 1e9:.1f} GB each, {found.checkpoint_write_s:.1f} s to write, "
        f"which interrupts training for {found.checkpoint_stall_s:.2f} s; "
        f"{found.checkpoints_on_disk_bytes / 1e9:,.0f} GB on disk\n"
        f"failures     one in {found.mtbf_s / HOUR_S:,.1f} hours, {found.failures:.1f} in all; the least time is lost "
        f"with checkpoint.every_steps={found.checkpoint_every_steps}\n"
        f"goodput      {found.goodput:.2%} with that interval, {found.goodput_as_configured:.2%} with the recipe's "
        f"{counted(every, 'step')}"
    )


def _data(found: Estimate) -> str:
    return (
        f"data         {found.shard_bytes / 1e9:,.1f} GB of shards, if each token is read once; all nodes together "
        f"read {found.read_bytes_per_s / 1e6:,.1f} MB/s"
    )


def _assumptions(setup: Setup, cluster: Cluster) -> str:
    gpu = cluster.gpu
    lines = [
        "assumptions  nothing in this plan was measured on a GPU",
        f"  {gpu.name} (data sheet): {setup.peak_flops / 1e12:.0f} TFLOP/s dense, {gpu.memory_bytes / 1e9:.0f} GB, "
        f"{gpu.intra_node_bytes_per_s / 1e9:.0f} GB/s within a node, "
        f"{gpu.inter_node_bytes_per_s / 1e9:.0f} GB/s between nodes, {gpu.watts:.0f} W",
    ]
    lines += [f"  {name}={value:g}: {SOURCES[name]}" for name, value in asdict(cluster.assumed).items()]
    return "\n".join(lines)


def plot(setup: Setup, cluster: Cluster, path: Path) -> None:
    """Draw the memory of the fullest rank by part, one bar per moment, and the memory available for tensors."""
    from matplotlib.figure import Figure

    names = [memory.moment for memory in setup.moments]
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots()
    filled = [0.0] * len(names)
    for part in setup.memory.parts():
        sizes = [memory.parts()[part] / 1e9 for memory in setup.moments]
        axes.barh(names, sizes, left=filled, label=part)
        filled = [before + size for before, size in zip(filled, sizes, strict=True)]
    for name, total in zip(names, filled, strict=True):
        axes.annotate(f"{total:.1f}", (total, name), xytext=(4, 0), textcoords="offset points", va="center")
    usable = usable_bytes(cluster.gpu, cluster.assumed) / 1e9
    axes.axvline(usable, color="black", linestyle="--", label=f"available: {usable:.1f}")
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1 * max(usable, *filled))
    axes.set(xlabel=f"GB on the fullest rank ({cluster.gpu.name}, {setup.json})", ylabel="moment")
    figure.legend(loc="outside right upper", fontsize="small")
    with written_whole(path) as partial:
        figure.savefig(partial, dpi=110, format="png")
