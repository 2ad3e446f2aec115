"""The plan as text for people, and as a picture of its memory."""

from dataclasses import asdict
from pathlib import Path

from pipeline.planning.alternatives import Way
from pipeline.planning.clusters import SOURCES, usable_bytes
from pipeline.planning.estimate import HOUR_S, Estimate, shortage_advice
from pipeline.planning.schedule import Cluster

N_SHOWN = 12


def report(way: Way, ways: list[Way], found: Estimate, cluster: Cluster) -> str:
    """Return the whole plan."""
    sections = [
        _model(way, found),
        _memory(way, ways, cluster),
        _ways(way, ways),
        _time(way, found, cluster),
        _checkpoints(way, found),
        _data(found),
        _assumptions(way, cluster),
    ]
    return "\n\n".join(sections)


def _model(way: Way, found: Estimate) -> str:
    flops = found.flops_per_token
    parts = ", ".join(f"{name} {part / flops.total:.1%}" for name, part in asdict(flops).items() if name != "attention")
    return (
        f"model        {found.parameters:,} parameters, n = {way.config.model.n_future_tokens}\n"
        f"FLOPs        {flops.total / 1e9:.2f} GFLOP per token, forward and backward: {parts}; "
        f"attention's own products are {flops.attention / flops.total:.1%} of it"
    )


def _memory(way: Way, ways: list[Way], cluster: Cluster) -> str:
    memory, usable = way.memory, usable_bytes(cluster.gpu, cluster.assumed)
    lines = [f"memory       of the fullest rank, at the moment '{memory.moment}', GB"]
    lines += [f"  {name:<16} {n_bytes / 1e9:>8.2f}" for name, n_bytes in memory.parts().items()]
    every = ", ".join(f"{name} {n_bytes / 1e9:.1f}" for name, n_bytes in way.moments.items())
    lines.append(f"  each moment      {every}")
    lines.append(f"  {'together':<16} {memory.device / 1e9:>8.2f}  of {usable / 1e9:.2f} for tensors")
    kept_back = cluster.gpu.memory_bytes - usable
    lines.append(f"  {'kept back':<16} {kept_back / 1e9:>8.2f}  context, libraries, fragmentation")
    if memory.host:
        lines.append(f"  {'on the host':<16} {memory.host / 1e9:>8.2f}  for each rank")
    lines.append(f"  {'fits' if way.fits else shortage_advice(way, cluster, ways)}")
    return "\n".join(lines)


def _ways(way: Way, ways: list[Way]) -> str:
    lines = [
        f"ways         {len(ways)} that a run would accept, {sum(other.fits for other in ways)} of them fit; fastest:",
        f"    {'DeepSpeed JSON':<19} {'stages':>6} {'micro':>5} {'recompute':>9} {'GB':>7} {'tokens/s':>11}  limit",
    ]
    shown = ways[:N_SHOWN]
    mine = [other for other in ways if _same(other, way)]
    for other in [*shown, *(extra for extra in mine if extra not in shown)]:
        train = other.config.train
        lines.append(
            f"  {'>' if _same(other, way) else ' '} {other.json:<19} {other.config.parallel.pipeline_stages:>6} "
            f"{train.micro_batch_size:>5} {'yes' if train.activation_checkpointing else 'no':>9} "
            f"{other.memory.device / 1e9:>7.1f} {other.tokens_per_s:>11,.0f}  "
            f"{other.time.limit() if other.fits else 'does not fit'}"
        )
    return "\n".join(lines)


def _same(other: Way, way: Way) -> bool:
    return other.json == way.json and other.config == way.config


def _time(way: Way, found: Estimate, cluster: Cluster) -> str:
    parts = {name.removesuffix("_s"): seconds / found.step_s for name, seconds in asdict(way.time).items()}
    shares = ", ".join(f"{name} {share:.1%}" for name, share in parts.items())
    return (
        f"time         {found.tokens_per_s:,.0f} tokens/s, {found.step_s:.2f} s a step ({shares})\n"
        f"             MFU {found.mfu:.1%}\n"
        f"             {found.steps:,} steps: {found.days:.1f} days, {found.gpu_hours:,.0f} GPU-hours on "
        f"{cluster.world_size:,} {cluster.gpu.name}\n"
        f"cost         {found.usd:,.0f} USD, {found.energy_kwh / 1000:,.1f} MWh"
    )


def _checkpoints(way: Way, found: Estimate) -> str:
    every = way.config.checkpoint.every_steps
    return (
        f"checkpoints  {found.checkpoint_bytes / 1e9:.1f} GB each, {found.checkpoint_write_s:.1f} s to write, "
        f"{found.checkpoint_stall_s:.2f} s of standing still; {found.checkpoints_on_disk_bytes / 1e9:,.0f} GB on disk\n"
        f"failures     one in {found.mtbf_s / HOUR_S:,.1f} h, {found.failures:.1f} in all; least is lost with "
        f"checkpoint.every_steps={found.checkpoint_every_steps}\n"
        f"goodput      {found.goodput:.2%} with that, {found.goodput_as_configured:.2%} with the recipe's {every}"
    )


def _data(found: Estimate) -> str:
    return (
        f"data         {found.shard_bytes / 1e9:,.1f} GB of shards to read each token once; "
        f"{found.read_bytes_per_s / 1e6:,.1f} MB/s over all nodes"
    )


def _assumptions(way: Way, cluster: Cluster) -> str:
    gpu = cluster.gpu
    lines = [
        "assumed      no figure here was measured on a GPU",
        f"  {gpu.name} (data sheet): {way.peak_flops / 1e12:.0f} TFLOP/s dense, {gpu.memory_bytes / 1e9:.0f} GB, "
        f"{gpu.intra_node_bytes_per_s / 1e9:.0f} GB/s within a node, "
        f"{gpu.inter_node_bytes_per_s / 1e9:.0f} GB/s between nodes, {gpu.watts:.0f} W",
    ]
    lines += [f"  {name}={value:g}: {SOURCES[name]}" for name, value in asdict(cluster.assumed).items()]
    return "\n".join(lines)


def plot(way: Way, cluster: Cluster, path: Path) -> None:
    """Draw the memory of the fullest rank by part, beside what the GPU has."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1.8), layout="constrained")
    axes = figure.subplots()
    left = 0.0
    for name, n_bytes in way.memory.parts().items():
        if n_bytes:
            axes.barh(0, n_bytes / 1e9, left=left, label=f"{name} {n_bytes / 1e9:.1f}")
            left += n_bytes / 1e9
    axes.axvline(usable_bytes(cluster.gpu, cluster.assumed) / 1e9, color="black", linestyle="--", label="usable")
    axes.set(xlabel=f"GB on a {cluster.gpu.name}, at the moment '{way.memory.moment}'", yticks=[])
    axes.legend(ncols=4, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.45))
    figure.savefig(path, dpi=110)
