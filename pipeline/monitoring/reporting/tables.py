"""The page's tables: runs side by side, differences between their configs, and their environments."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

from common.wording import counted
from pipeline.config.schema import Config
from pipeline.model.formulas import parameter_count
from pipeline.monitoring.reporting.curves import duration, number, tokens
from pipeline.monitoring.reporting.markup import Html, tag
from pipeline.monitoring.reporting.run_folder import RunFolder
from pipeline.monitoring.reporting.summary import FINAL_POINTS, Summary, loss_before

NOT_COMPARED = {"run.name", "run.dir"}  # differ between any two runs
DASH = number(None)
MOST_LETTERS = 160  # of a config value


def table(rows: Sequence[tuple[str, Sequence[str]]], *, columns: Sequence[str]) -> Html:
    """Return a table with a heading for each row and column."""
    head = tag("tr", tag("th"), [tag("th", name, scope="col") for name in columns])
    body = [tag("tr", tag("th", label, scope="row"), [tag("td", cell) for cell in cells]) for label, cells in rows]
    return tag("div", tag("table", tag("thead", head), tag("tbody", body)), class_="scroll")


def comparison(runs: Sequence[RunFolder], summaries: Sequence[Summary]) -> list[tuple[str, list[str]]]:
    """Return the rows that compare runs; in rows with several losses, the lowest is marked."""
    rows: list[tuple[str, list[str]]] = [
        ("state", [summary.standing.partition(";")[0].partition(":")[0] for summary in summaries]),
        ("heads", [str(summary.n_heads or DASH) for summary in summaries]),
        ("parameters", [_parameters(run) for run in runs]),
        ("tokens", [tokens(summary.tokens) for summary in summaries]),
        (f"training loss of head 1, mean of last {FINAL_POINTS} reports", _lowest([s.train_loss for s in summaries])),
    ]
    common = min((summary.tokens or 0 for summary in summaries), default=0)
    if common and any(summary.tokens != common for summary in summaries):
        at_common = [loss_before(run, step=common // (run.tokens_per_step or 1)) for run in runs]
        rows.append((f"the same after {tokens(common)} tokens", _lowest(at_common)))
    for head in range(max((len(summary.validation) for summary in summaries), default=0)):
        losses = [summary.validation[head] if head < len(summary.validation) else None for summary in summaries]
        rows.append((f"validation loss of head {head + 1}", _lowest(losses)))
    rows += [
        ("tokens/s, median", [number(summary.tokens_per_s) for summary in summaries]),
        ("MFU, median", [DASH if summary.mfu is None else f"{summary.mfu:.1%}" for summary in summaries]),
        ("peak memory of rank 0", [gib(summary.peak_memory_gib) for summary in summaries]),
        ("rank-hours", [hours(summary) for summary in summaries]),
        ("restarts", [restarts(summary) for summary in summaries]),
        ("rollbacks", [str(summary.n_rollbacks) for summary in summaries]),
        ("skipped steps", [str(summary.skipped_steps) for summary in summaries]),
    ]
    return [row for row in rows if any(cell != DASH for cell in row[1])]


def differences(runs: Sequence[RunFolder]) -> list[tuple[str, list[str]]]:
    """Return the fields of config.yaml and ds_config.json that differ between runs, with each run's value."""
    keys = [key for key in dict.fromkeys(key for run in runs for key in run.fields) if key not in NOT_COMPARED]
    rows = [(key, [plain(run.fields[key]) if key in run.fields else DASH for run in runs]) for key in keys]
    return [row for row in rows if len(set(row[1])) > 1]


def deviations(run: RunFolder) -> list[tuple[str, list[str]]]:
    """Return the fields of a run's config that differ from their defaults, with both values."""
    defaults = {
        f"{section}.{field}": value
        for section, fields in dataclasses.asdict(Config()).items()
        for field, value in fields.items()
    }
    return [
        (key, [plain(value), plain(defaults[key]) if key in defaults else DASH])
        for key, value in run.fields.items()
        if not key.startswith("ds_config.") and (key not in defaults or plain(defaults[key]) != plain(value))
    ]


def changes(run: RunFolder) -> list[tuple[str, list[str]]]:
    """Return the fields that changed between launches, with the step after which they did, and both values."""
    return [
        (f"{field} after step {event.get('step')}", [plain(value) for value in values])
        for event in run.history
        if isinstance(found := event.get("changes"), dict)
        for field, values in found.items()
        if isinstance(values, list) and len(values) == 2
    ]


def environment(runs: Sequence[RunFolder], summaries: Sequence[Summary]) -> list[tuple[str, list[str]]]:
    """Return the rows that show the device, ranks and versions of each run."""

    def row(label: str, value: Callable[[RunFolder], Any]) -> tuple[str, list[str]]:
        return label, [plain(found) if (found := value(run)) is not None else DASH for run in runs]

    packages = [run.environment.get("packages") for run in runs]
    names = dict.fromkeys(name for found in packages if isinstance(found, dict) for name in found)
    ranks = [", then ".join(_without_repeats([f"{launch.ranks}" for launch in s.launches or ()])) for s in summaries]
    rows = [
        row("device", lambda run: run.environment.get("device")),
        ("ranks", [of_run or DASH for of_run in ranks]),
        row("ZeRO stage", lambda run: run.fields.get("ds_config.zero_optimization.stage")),
        row("commit", lambda run: run.environment.get("git_commit")),
        row("Python", lambda run: run.environment.get("python")),
        *((str(name), [plain(_of(of_run, name) or DASH) for of_run in packages]) for name in names),
    ]
    return [row for row in rows if any(cell != DASH for cell in row[1])]


def hours(summary: Summary) -> str:
    """Return the cost of a run in rank-hours of its device, such as "4.00 GPU-hours"."""
    if not summary.launches:
        return DASH
    total = sum(launch.rank_hours for launch in summary.launches)
    devices = " and ".join(dict.fromkeys("GPU" if "cuda" in x.device else x.device.upper() for x in summary.launches))
    return f"{number(total)} {devices}-hours"


def restarts(summary: Summary) -> str:
    """Return how often a run was restarted."""
    return DASH if summary.launches is None else str(max(0, len(summary.launches) - 1))


def gib(value: float | None) -> str:
    """Return an amount of memory as text."""
    return DASH if value is None else f"{number(value)} GiB"


def left(summary: Summary) -> str:
    """Return how much of a run remains."""
    if summary.total_steps is None:
        return "length unknown"
    steps = summary.total_steps - summary.last_step
    if steps <= 0:
        return "no steps left"
    time = f", about {duration(summary.left_s)} at the median throughput" if summary.left_s else ""
    return f"{counted(steps, 'step')} left{time}"


def plain(value: Any) -> str:
    """Return a config value as text, cut short if it is long."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= MOST_LETTERS else f"{text[:MOST_LETTERS]} ..."


def _parameters(run: RunFolder) -> str:
    sized = {"model.dim", "model.n_layers", "model.n_heads"} <= run.fields.keys() and run.config is not None
    if not sized or run.config is None or 0 in (run.config.model.dim, run.config.model.n_heads):
        return DASH
    return f"{number(parameter_count(run.config.model) / 1e6)} M"


def _lowest(losses: Sequence[float | None]) -> list[str | Html]:
    cells = [number(loss, digits=4) for loss in losses]
    known = [loss for loss in losses if loss is not None and loss == loss]
    if len(known) < 2:
        return list(cells)
    return [
        tag("strong", cell, title="lowest") if loss == min(known) else cell
        for cell, loss in zip(cells, losses, strict=True)
    ]


def _of(mapping: Any, name: str) -> Any:
    return mapping.get(name) if isinstance(mapping, dict) else None


def _without_repeats(values: list[str]) -> list[str]:
    return [value for i, value in enumerate(values) if not i or value != values[i - 1]]
