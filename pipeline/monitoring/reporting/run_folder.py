"""Reads a run's folder, which may be whole, half-written, written by another version, or no run at all.

`read_run_folder` never raises because of the files' content. It reads what it can, and describes the rest in
`problems`, one sentence each: a report is most useful for a run with which something is wrong.
"""

import math
import re
from array import array
from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.command_line import UserError, one_line
from common.small_files import MOST_YAML_BYTES, parse_yaml, read_small_file
from common.wording import counted
from pipeline.config.recipe import read_config
from pipeline.config.schema import Config
from pipeline.monitoring.reporting.damaged_files import lines, objects, read_json_object
from pipeline.runtime.history import HISTORY
from pipeline.runtime.metrics_lines import METRICS, is_step
from pipeline.weights.checkpoint.listing import checkpoints_in, step_of
from pipeline.weights.checkpoint.manifest import MANIFEST

PARTS = (METRICS, "config.yaml", "ds_config.json", "environment.json", "train.log", HISTORY, "checkpoints")
OF_STARTED_RUNS = (METRICS, "config.yaml", HISTORY, "checkpoints/step_*")  # a refused start leaves none of them
KEPT_WARNINGS = 12
MOST_TAGS = 1000
MOST_NAMED = 10
MOST_LETTERS = 2000  # of a warning
MOST, LEAST = 1e100, 1e-100  # sizes of values that are shown; smaller ones are shown as 0
_LOG_LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d{3} (\w+) (.*)")


@dataclass(frozen=True, kw_only=True)
class Series:
    """The values logged under one tag, with their steps; values that were not finite are NaN."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """The contents of a run's folder."""

    path: Path
    name: str  # of the folder
    series: dict[str, Series] = field(default_factory=dict)  # by tag
    tokens_per_step: int | None = None  # None if neither the metrics nor the config say it
    config: Config | None = None  # checked, with defaults for everything that this version does not know
    fields: dict[str, Any] = field(default_factory=dict)  # section.field -> value, exactly as the files have it
    environment: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)  # events of history.jsonl; their `time` is local
    bad_steps: list[dict[str, Any]] = field(default_factory=list)
    signs_of_life: list[datetime] = field(default_factory=list)  # times of the lines of train.log
    warnings: list[str] = field(default_factory=list)  # the last of train.log, with their times
    n_warnings: int = 0  # all of them
    checkpoints: list[int] = field(default_factory=list)  # steps of the complete ones
    problems: list[str] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """True if there is nothing to show."""
        return not (self.series or self.fields or self.environment or self.history)

    @property
    def last_step(self) -> int:
        """The last logged step; 0 if there is none."""
        return max((int(series.steps[-1]) for series in self.series.values()), default=0)

    @property
    def total_steps(self) -> int | None:
        """Number of steps of the whole run, or None if its config does not say it."""
        known = self.config is not None and {"train.total_tokens", "train.batch_tokens"} <= self.fields.keys()
        return self.config.total_steps if self.config is not None and known else None

    @property
    def head_tags(self) -> list[str]:
        """Tags of the heads' training losses, nearest token first."""
        return numbered(self.series, "loss/head_")

    @property
    def validation_tags(self) -> list[str]:
        """Tags of the heads' validation losses, nearest token first."""
        return numbered(self.series, "val/loss_head_")


def numbered(tags: Iterable[str], prefix: str) -> list[str]:
    """Return the tags that consist of `prefix` and a number, in the order of the numbers."""
    matching = [tag for tag in tags if re.fullmatch(re.escape(prefix) + r"[0-9]{1,4}", tag)]
    return sorted(matching, key=lambda tag: int(tag.removeprefix(prefix)))


def _has_any_part(path: Path) -> bool:
    return any((path / part).exists() for part in PARTS)


def read_run_folder(path: Path) -> RunFolder:
    """Return what can be read from the run's folder `path`."""
    name = path.resolve().name
    if not path.is_dir():
        what = "is a file; give the folder of a run" if path.exists() else "does not exist"
        return RunFolder(path=path, name=name, problems=[f"{path} {what}"])
    if not _has_any_part(path):
        problem = f"{path} is not a run's folder: it has none of {', '.join(PARTS)}{_runs_inside(path)}"
        return RunFolder(path=path, name=name, problems=[problem])
    if not any(any(path.glob(part)) for part in OF_STARTED_RUNS):
        problem = f"{path} is the folder of a run that never started: the output of its start says why; delete it"
        return RunFolder(path=path, name=name, problems=[problem])
    problems: list[str] = []
    series, tokens_per_step = _metrics(path / METRICS, problems)
    config, fields = _config(path / "config.yaml", problems)
    deepspeed = read_json_object(path / "ds_config.json", problems)
    fields |= {f"ds_config.{key}": value for key, value in _flat(deepspeed).items()}
    if tokens_per_step is None and config is not None and "train.batch_tokens" in fields:
        tokens_per_step = config.train.batch_tokens
    signs_of_life, warnings, n_warnings = _log(path / "train.log", problems)
    return RunFolder(
        path=path,
        name=name,
        series=series,
        tokens_per_step=tokens_per_step,
        config=config,
        fields=fields,
        environment=read_json_object(path / "environment.json", problems),
        history=_history(path / HISTORY, problems),
        bad_steps=[row for row in objects(path / "bad_steps.jsonl", problems) if is_step(row.get("step"))],
        signs_of_life=signs_of_life,
        warnings=warnings,
        n_warnings=n_warnings,
        checkpoints=_checkpoints(path / "checkpoints"),
        problems=problems,
    )


def _runs_inside(path: Path) -> str:
    runs = [str(child) for child in sorted(path.iterdir()) if _has_any_part(child)]
    more = f" and {len(runs) - MOST_NAMED:,} more" if len(runs) > MOST_NAMED else ""
    return f"; it contains runs: {' '.join(runs[:MOST_NAMED])}{more}" if runs else ""


def _metrics(path: Path, problems: list[str]) -> tuple[dict[str, Series], int | None]:
    """Return the series of each tag, and the tokens per step."""
    if not path.exists():
        problems.append("metrics.jsonl is missing: nothing has been logged yet")
        return {}, None
    steps: dict[str, array[int]] = defaultdict(lambda: array("q"))
    values: dict[str, array[float]] = defaultdict(lambda: array("d"))
    tokens_per_step, n_without_step, not_shown, has_more = None, 0, defaultdict[str, int](int), False
    for line in objects(path, problems):
        step, tokens = line.pop("step", None), line.pop("tokens", None)
        if not is_step(step):
            n_without_step += 1
            continue
        if step and is_step(tokens) and tokens:
            tokens_per_step = round(tokens / step)
        for tag, value in line.items():
            if len(steps) >= MOST_TAGS and tag not in steps:
                has_more = True
            elif value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
                number = _float(value)
                not_shown[tag] += math.isnan(number)
                steps[tag].append(step)
                values[tag].append(number)
    if n_without_step:
        verb = "has no step and is" if n_without_step == 1 else "have no step and are"
        problems.append(f"metrics.jsonl: {counted(n_without_step, 'line')} {verb} left out")
    if not steps:
        problems.append("metrics.jsonl contains no step")
    if has_more:
        problems.append(f"{METRICS} has more than {MOST_TAGS:,} tags; the others are left out")
    problems += [
        f"{tag}: {count:,} of {len(values[tag]):,} logged values {_not_shown(count)} in the curve"
        for tag, count in not_shown.items()
        if count
    ]
    return {tag: _series(steps[tag], values[tag]) for tag in steps}, tokens_per_step


def _not_shown(count: int) -> str:
    verbs = ("is", "leaves a gap") if count == 1 else ("are", "leave gaps")
    return f"{verbs[0]} not finite or beyond {MOST:g} and {verbs[1]}"


def _series(steps: "array[int]", values: "array[float]") -> Series:
    order = np.argsort(np.asarray(steps), kind="stable")
    return Series(steps=np.asarray(steps, dtype=np.int64)[order], values=np.asarray(values)[order])


def _config(path: Path, problems: list[str]) -> tuple[Config | None, dict[str, Any]]:
    """Return the config, with defaults for whatever this version does not know, and the fields exactly as written."""
    if not path.exists():
        problems.append("config.yaml is missing")
        return None, {}
    try:
        fields = _flat(parse_yaml(read_small_file(path, most_bytes=MOST_YAML_BYTES), name=path.name))
        read = read_config(path)
    except (UserError, TypeError) as error:
        problems.append(one_line(error))
        return None, {}
    if read.problems:
        problems.append(f"this version does not accept all of config.yaml: {'; '.join(read.problems)}")
    return read.config, fields


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested dicts as one dict with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items() if isinstance(values, dict) else ():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _history(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    if not path.exists():
        problems.append(f"{HISTORY} is missing: launches and hours are unknown")
    events = []
    for event in objects(path, problems):
        try:
            event["time"] = datetime.fromisoformat(event["time"]).replace(tzinfo=None)
        except (KeyError, TypeError, ValueError):
            problems.append(f"{HISTORY}: an event has no time and is left out")
        else:
            events.append(event)
    return events


def _log(path: Path, problems: list[str]) -> tuple[list[datetime], list[str], int]:
    """Return the times of the log's lines, its last warnings and errors, and the number of all warnings and errors."""
    times: list[datetime] = []
    warnings: deque[str] = deque(maxlen=KEPT_WARNINGS)
    n_warnings = 0
    for line in lines(path, problems):
        if line is None or (found := _LOG_LINE.match(line.decode(errors="replace"))) is None:
            continue
        time, level, message = found.groups()
        try:
            times.append(datetime.fromisoformat(time))
        except ValueError:
            continue
        if level in ("WARNING", "ERROR", "CRITICAL"):
            n_warnings += 1
            warnings.append(f"{time}  {message[:MOST_LETTERS]}")
    return times, list(warnings), n_warnings


def _checkpoints(folder: Path) -> list[int]:
    try:
        found = [step_of(path) for path in checkpoints_in(folder) if (path / MANIFEST).is_file()]
    except OSError:
        found = []
    return sorted(step for step in found if step is not None)


def _float(value: float | None) -> float:
    number = math.nan if value is None else float(value)
    if abs(number) < LEAST:
        return 0.0
    return number if abs(number) <= MOST else math.nan
