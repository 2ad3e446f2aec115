"""Builds the whole page: the state of each run, charts, then tables. Static; it loads nothing from elsewhere."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from common.wording import counted
from pipeline.monitoring.reporting import tables
from pipeline.monitoring.reporting.chart import Chart, svg
from pipeline.monitoring.reporting.curves import duration, number, tokens
from pipeline.monitoring.reporting.markup import Child, Html, joined, tag
from pipeline.monitoring.reporting.panels import BEGINNING, N_COLOURS, panels
from pipeline.monitoring.reporting.run_folder import RunFolder
from pipeline.monitoring.reporting.summary import FINAL_POINTS, Summary, summarize
from pipeline.runtime.metrics_lines import METRICS


def page(runs: Sequence[RunFolder]) -> str:
    """Return the report as an HTML document. Runs that could not be read appear with the reason."""
    shown = [run for run in runs if not run.is_empty]
    summaries = [summarize(run) for run in shown]
    names = names_of(shown)
    title = f"Run {names[0]}" if len(shown) == 1 else f"{len(shown)} runs: {', '.join(names)}"
    body = joined(
        tag("h1", title) if len(shown) > 1 else (),
        [
            _head(run, summary, i, name=names[i], is_single=len(shown) == 1)
            for i, (run, summary) in enumerate(zip(shown, summaries, strict=True))
        ],
        [_problems(run.problems) for run in runs if run.is_empty],
        _side_by_side(shown, summaries, names) if len(shown) > 1 else (),
        _charts(shown, names),
        _configs(shown, names),
        _environment(shown, summaries, names),
        _warnings(shown, names),
        tag("footer", f"Written {datetime.now().isoformat(sep=' ', timespec='minutes')} by python -m pipeline.report."),
    )
    style = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    document = joined(
        Html("<!doctype html>\n"),
        tag(
            "html",
            tag(
                "head",
                Html('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
                tag("title", title),
                tag("style", Html(style)),
            ),
            tag("body", body),
            lang="en",
        ),
        "\n",
    )
    return document.encode("utf-8", errors="replace").decode("utf-8")  # names of files and tags may contain anything


def names_of(runs: Sequence[RunFolder]) -> list[str]:
    """Return a label for each run: its folder's name, or as much of its path as makes the labels distinct."""
    names = [run.name for run in runs]
    paths = [run.path.resolve().parts for run in runs]
    for n_parts in range(2, max(map(len, paths), default=0) + 1):
        if len(set(names)) == len(set(paths)):
            break
        names = ["/".join(parts[-n_parts:]) for parts in paths]
    return names


def _head(run: RunFolder, summary: Summary, index: int, *, name: str, is_single: bool) -> Html:
    share = min(1.0, summary.last_step / summary.total_steps) if summary.total_steps else None
    of = "" if summary.total_steps is None else f" of {summary.total_steps:,}"
    saved = f"newest complete checkpoint: step {run.checkpoints[-1]:,}" if run.checkpoints else "no complete checkpoint"
    return tag(
        "section",
        tag(
            "h1" if is_single else "h2",
            () if is_single else tag("span", class_=f"swatch r{index % N_COLOURS + 1}"),
            name,
            tag("span", summary.standing, class_="state"),
        ),
        tag("div", tag("i", style=f"width:{share:.1%}"), class_="bar") if share is not None else (),
        tag("p", f"step {summary.last_step:,}{of}, {tables.left(summary)}; {saved}", class_="soft"),
        _figures(summary) if is_single else (),
        _problems(run.problems),
        class_=f"run {summary.state}",
    )


def _figures(summary: Summary) -> Html:
    figures: list[tuple[str, str, str]] = [
        ("training loss, head 1", number(summary.train_loss, digits=4), f"mean of last {FINAL_POINTS} reports"),
        ("validation loss, head 1", number(summary.validation[0] if summary.validation else None, digits=4), "last"),
        ("tokens", tokens(summary.tokens), ""),
        ("tokens/s", number(summary.tokens_per_s), "median"),
        ("MFU", tables.DASH if summary.mfu is None else f"{summary.mfu:.1%}", "median"),
        ("peak memory", tables.gib(summary.peak_memory_gib), "rank 0"),
        ("cost", tables.hours(summary), _wall(summary)),
        ("restarts", tables.restarts(summary), _also(summary)),
    ]
    return tag(
        "dl",
        [
            tag("div", tag("dt", label), tag("dd", value, " ", tag("small", note)))
            for label, value, note in figures
            if value != tables.DASH
        ],
        class_="figures",
    )


def _problems(problems: Sequence[str]) -> Child:
    return tag("ul", [tag("li", problem) for problem in problems], class_="problems") if problems else ()


def _charts(runs: Sequence[RunFolder], names: Sequence[str]) -> Child:
    shown = panels(runs, names=names)
    if not (shown.large or shown.ordinary or shown.small):
        return ()
    kinds = {mark.kind for chart in (*shown.large, *shown.ordinary) for mark in chart.marks}
    meanings = {
        "resumed": "triangles: launches that resumed from a checkpoint",
        "rollback": "red triangles: rollbacks to a checkpoint after the loss jumped",
        "skipped": "red strokes: bad steps",
    }
    notes = [
        "Faint: every reported value, or their range in long runs; strong: running mean",
        *(
            ["points and steps: whole numbers that name or count something, of which no mean is drawn"]
            if shown.has_exact_lines
            else []
        ),
        "the axis of tokens or steps is logarithmic, because the runs differ much in length"
        if shown.is_log
        else f"the scale of losses ignores the first {BEGINNING:.0%} of a run",
        *(text for kind, text in meanings.items() if kind in kinds),
    ]
    left_out = f"{METRICS} contains {counted(shown.n_tags_left_out, 'more tag')}." if shown.n_tags_left_out else ""
    return [
        tag("h2", "Curves"),
        tag("p", "; ".join(notes) + ".", class_="soft"),
        tag("div", [_figure(chart, width=1200, height=360) for chart in shown.large], class_="charts large"),
        tag("div", [_figure(chart, width=600, height=270) for chart in shown.ordinary], class_="charts"),
        tag("h2", "Other tags") if shown.small else (),
        tag("div", [_figure(chart, width=400, height=190) for chart in shown.small], class_="charts small"),
        tag("p", left_out, class_="soft") if left_out else (),
    ]


def _figure(chart: Chart, *, width: int, height: int) -> Html:
    caption = tag("figcaption", chart.title, tag("span", chart.unit, class_="unit"))
    return tag("figure", caption, svg(chart, width=width, height=height))


def _side_by_side(runs: Sequence[RunFolder], summaries: Sequence[Summary], names: Sequence[str]) -> Child:
    return [
        tag("h2", "Side by side"),
        tables.table(tables.comparison(runs, summaries), columns=names),
        tag("p", "Losses of head 1 are comparable for any number of heads. Bold: lowest.", class_="soft"),
    ]


def _configs(runs: Sequence[RunFolder], names: Sequence[str]) -> Child:
    return [_last_configs(runs, names), [_changes(run, name) for run, name in zip(runs, names, strict=True)]]


def _changes(run: RunFolder, name: str) -> Child:
    rows = tables.changes(run)
    if not rows:
        return ()
    return [
        tag("h2", f"What changed while {name} ran"),
        tables.table(rows, columns=("before", "after")),
        tag("p", "The table of the config has the values after the last change.", class_="soft"),
    ]


def _last_configs(runs: Sequence[RunFolder], names: Sequence[str]) -> Child:
    if len(runs) > 1:
        rows = tables.differences(runs)
        return [
            tag("h2", "Differences between configs"),
            tables.table(rows, columns=names) if rows else tag("p", "none", class_="soft"),
        ]
    if not runs[0].fields:
        return ()
    return [
        tag("h2", "Config"),
        tables.table(tables.deviations(runs[0]), columns=("this run", "default")),
        tag("p", "All other fields have their default values.", class_="soft"),
    ]


def _environment(runs: Sequence[RunFolder], summaries: Sequence[Summary], names: Sequence[str]) -> Child:
    rows = tables.environment(runs, summaries)
    return [tag("h2", "Environment"), tables.table(rows, columns=names)] if rows else ()


def _warnings(runs: Sequence[RunFolder], names: Sequence[str]) -> Child:
    having = [(run, name) for run, name in zip(runs, names, strict=True) if run.warnings]
    return [
        tag("h2", "Warnings in train.log") if having else (),
        [
            tag(
                "details",
                tag("summary", f"{name}: {counted(run.n_warnings, 'warning')}" + _last_of(run)),
                tag("pre", "\n".join(run.warnings)),
                open="" if len(runs) == 1 else None,
            )
            for run, name in having
        ],
    ]


def _last_of(run: RunFolder) -> str:
    return f", the last {len(run.warnings)} of which follow" if run.n_warnings > len(run.warnings) else ""


def _wall(summary: Summary) -> str:
    seconds = sum((launch.until - launch.time).total_seconds() for launch in summary.launches or ())
    return f"{duration(seconds)} of wall time"


def _also(summary: Summary) -> str:
    also = [(summary.n_rollbacks, "rollback"), (summary.skipped_steps, "skipped step")]
    return ", ".join(counted(count, noun) for count, noun in also if count)
