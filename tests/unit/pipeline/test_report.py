"""The page about runs, compared with figures that are computed here."""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.command_line import UserError
from pipeline import report
from pipeline.monitoring.reporting import curves, tables
from pipeline.monitoring.reporting.page import names_of, page
from pipeline.monitoring.reporting.run_folder import RunFolder, read_run_folder
from pipeline.monitoring.reporting.summary import summarize
from pipeline.runtime import history
from tests.conftest import run_module
from tests.helpers.run_folders import STEP_TOKENS, Checker, Write, paged, write_run_folder


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return partial(write_run_folder, tmp_path)


def rows(checker: Checker) -> str:
    return re.sub(r"\s+", " ", " | ".join(checker.text))


def test_a_page_about_one_run(write: Write, tmp_path: Path) -> None:
    checker, text = paged(write(), output=tmp_path / "out.html")
    assert "step 40 of 40, no steps left; newest complete checkpoint: step 20" in text
    assert "Training loss per head" in text
    assert "Validation loss per head" in text
    assert "20.5 thousand" in text  # 40 x 512
    assert {"h1", "h2"} <= {str(given.get("class")) for name, given in checker.tags if name == "g"}
    assert "Model FLOPs utilisation" not in text  # nothing logged it


def test_the_config_table_lists_only_fields_that_differ_from_their_defaults(write: Write) -> None:
    rows = dict(tables.deviations(read_run_folder(write())))
    assert rows["data.seq_len"] == ["32", "4096"]
    assert "log.prompts" not in rows  # a list in the file, a tuple in the config
    assert all(value != default for value, default in rows.values())


def test_a_summary_agrees_with_the_logged_lines(write: Write) -> None:
    changes = {step: {"memory/peak_GiB": 3.25} for step in (7,)}
    run = read_run_folder(write(steps=30, changes=changes))
    summary = summarize(run)
    assert summary.train_loss == pytest.approx(np.mean([1.1 + 5 / step for step in range(21, 31)]))
    assert summary.validation == [3.5, 4.5]
    assert summary.tokens_per_s == np.median([1000 + step for step in range(1, 31)])
    assert (summary.last_step, summary.total_steps, summary.tokens) == (30, 40, 30 * STEP_TOKENS)
    assert summary.peak_memory_gib == 3.25
    assert summary.tokens_per_s is not None
    assert summary.left_s == pytest.approx(10 * STEP_TOKENS / summary.tokens_per_s)


def test_rank_hours_end_with_the_last_sign_of_life(write: Write) -> None:
    folder = write(steps=20)
    events = [
        {"event": "launch", "time": "2026-11-21T10:00:00+01:00", "step": 0, "ranks": 2, "device": "cuda"},
        {"event": "launch", "time": "2026-11-21T12:00:00+01:00", "step": 10, "ranks": 4, "device": "cuda"},
        {"event": "rollback", "time": "2026-11-21T12:10:00+01:00", "step": 15, "to_step": 10},
        {"event": "end", "time": "2026-11-21T12:30:00+01:00", "exit_code": 75},
    ]
    (folder / "history.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (folder / "train.log").write_text(
        "2026-11-21 10:00:01,000 INFO model\nlayout of no time\n2026-11-21 11:00:00,000 WARNING the disk is full\n"
        "2026-11-21 12:00:05,000 INFO resumed\n"
    )
    run = read_run_folder(folder)
    summary = summarize(run)
    assert tables.hours(summary) == "4.00 GPU-hours"  # killed after an hour on 2 ranks, then half an hour on 4
    assert (summary.state, tables.restarts(summary), summary.n_rollbacks) == ("stopped", "1", 1)
    assert run.warnings == ["2026-11-21 11:00:00  the disk is full"]
    _, text = paged(folder, output=folder / "out.html")
    assert "resumed after step 10" in text
    assert "rolled back from step 15 to 10" in text
    assert "2, then 4" in text


def test_fields_that_changed_between_launches_are_shown_with_their_steps(write: Write) -> None:
    folder = write(steps=20)
    history.record(folder, "launch", step=10, ranks=2, device="cpu", changes={"optim.lr": (0.25, 0.5)})
    with (folder / history.HISTORY).open("a") as file:  # what anybody may have written
        for odd in ("[]", '{"optim.eps": 3}', '{"optim.eps": [1, 2, 3]}'):
            file.write(f'{{"event": "launch", "time": "2026-11-21T10:00:00", "step": 12, "changes": {odd}}}\n')
    checker, _ = paged(folder, output=folder / "out.html")
    text = rows(checker)
    assert "optim.lr after step 10 | 0.25 | 0.5" in text
    assert "optim.eps after" not in text


def test_the_history_survives_a_cut_line_and_a_full_disk(tmp_path: Path, pipeline_log: Any) -> None:
    history.record(tmp_path, "launch", step=0, ranks=1, device="cpu")
    with (tmp_path / history.HISTORY).open("a") as file:
        file.write('{"event": "en')
    history.record(tmp_path, "launch", step=5, ranks=1, device="cpu")
    run = read_run_folder(tmp_path)
    assert [event["step"] for event in run.history] == [0, 5]
    history.record(tmp_path / "missing", "end", exit_code=0)
    path = tmp_path / "missing" / history.HISTORY
    assert f"could not write this end to {path}: No such file or directory" in pipeline_log.text


def test_runs_are_compared_after_the_same_number_of_tokens(write: Write, tmp_path: Path) -> None:
    one, four = write("n1", n_heads=1, steps=40), write("n4", n_heads=4, steps=20)
    checker, _ = paged(one, four, output=tmp_path / "out.html")
    text = rows(checker)
    at_20 = np.mean([1.1 + 5 / step for step in range(11, 21)])
    at_40 = np.mean([1.1 + 5 / step for step in range(31, 41)])
    assert f"training loss of head 1, mean of last 10 reports | {at_40:.3f} | {at_20:.3f}" in text
    assert f"the same after 10.2 thousand tokens | {at_20:.3f} | {at_20:.3f}" in text
    assert "model.n_future_tokens | 1 | 4" in text
    assert "model.dim" not in text
    assert "validation loss of head 4 | – | 6.500" in text  # noqa: RUF001
    colours = [given["class"] for name, given in checker.tags if name == "g"]
    assert {"r1", "r2", "h1", "h4"} <= set(colours)


def test_runs_with_the_same_name_get_distinct_labels() -> None:
    runs = [RunFolder(path=Path(path), name=Path(path).name) for path in ("/a/x/try", "/b/x/try", "/b/x/other")]
    assert names_of(runs) == ["a/x/try", "b/x/try", "b/x/other"]
    assert names_of(runs[1:]) == ["try", "other"]


def test_values_that_are_not_finite_make_gaps_with_crosses(write: Write, tmp_path: Path) -> None:
    folder = write(changes={step: {"loss/head_2": None} for step in (11, 12, 30)})
    checker, text = paged(folder, output=tmp_path / "out.html")
    assert "loss/head_2: 3 of 40 logged values are not finite" in text
    paths = {given["class"]: given["d"] for name, given in checker.tags if name == "path" and given.get("class")}
    assert paths["cross"] is not None
    assert paths["cross"].count("M") == 3
    assert np.isnan(read_run_folder(folder).series["loss/head_2"].values).sum() == 3


def test_bad_steps_and_unknown_tags_are_shown(write: Write, tmp_path: Path) -> None:
    odd = {f"time/part_{i}_s": 0.1 * i for i in range(40)} | {"new/<b>": 3.0, "text": "x", "flag": True}
    folder = write(changes=dict.fromkeys(range(1, 41), odd))
    bad = {"step": 12, "loss": "nan", "gradient_norm": "inf", "verdict": "skipped", "samples": []}
    (folder / "bad_steps.jsonl").write_text(json.dumps(bad) + "\n")
    _, text = paged(folder, output=tmp_path / "out.html")
    assert "step 12: skipped" in text
    assert "new/<b>" in text
    assert "time/part_3_s" in text
    assert "time/part_29_s" not in text
    assert "metrics.jsonl contains 11 more tags." in text


def drawn_in(page: str, title: str) -> tuple[dict[str, str], str]:
    """Return the paths of the chart with this title by class, and its text."""
    (chart,) = re.findall(rf"<figure>(?:(?!</figure>).)*?<title>{re.escape(title)}</title>.*?</figure>", page)
    paths = {name: d for d, name in re.findall(r'<path d="([^"]*)" class="([^"]*)"', chart)}
    return paths, " ".join(re.sub(r"<[^>]*>", " ", chart).split())


@pytest.mark.parametrize("steps", [40, 900])
def test_whole_numbers_that_name_or_count_something_are_not_averaged(write: Write, steps: int) -> None:
    """The slowest rank was 0, 2, 0, 2 ...: its mean, 1, is a rank that was never slow."""
    changes = {
        step: {"time/slowest_rank": 2.0 * (step % 2), "seen/epoch": float(step // 20), "time/part_s": step % 2 + 0.5}
        for step in range(1, steps + 1)
    }
    document = page([read_run_folder(write(steps=steps, total_steps=steps, changes=changes))])
    paths, text = drawn_in(document, "time/slowest_rank")
    kind = "dots" if steps == 40 else "dots many"
    assert "line" not in paths
    assert {float(y) for _, y in re.findall(r"M(\S+) (\S+)h0", paths[kind])} == {150.0, 22.4}  # 0 and 2 of 0 to 2.1
    assert text.endswith(" 0")
    paths, text = drawn_in(document, "seen/epoch")
    assert re.fullmatch(r"M\S+ \S+(H\S+?V\S+?)+", paths["line"])
    assert text.endswith(f" {steps // 20}")
    paths, text = drawn_in(document, "time/part_s")
    assert "line" in paths
    assert re.search(r" \d\.\d+$", text)  # a measured value keeps its digits


@pytest.mark.parametrize(("steps", "is_log"), [(20, False), (150, False), (2000, True)])
def test_a_short_run_beside_a_long_one_has_its_share_of_the_width(write: Write, steps: int, is_log: bool) -> None:
    runs = [read_run_folder(write(name, steps=n, total_steps=n)) for name, n in (("short", 20), ("long", steps))]
    document = page(runs)
    paths, text = drawn_in(document, "Training loss per head: short")
    xs = [float(x) for x in re.findall(r"M([\d.]+) [\d.]+h0", paths["dots"])]
    width = 600 - 52 - 96
    assert (max(xs) - min(xs)) / width > {20: 0.9, 150: 0.12, 2000: 0.35}[steps]
    assert ("log scale" in text) == ("axis of tokens or steps is logarithmic" in document) == is_log
    assert min(xs) >= 52
    ys = [float(y) for y in re.findall(r"M[\d.]+ ([\d.]+)h0", paths["dots"])]
    assert len(ys) == len(xs) >= 19  # they are in the range of losses, though all lie in the long run's beginning


def test_the_page_of_a_long_run_is_small_and_shows_every_jump(write: Write) -> None:
    folder = write(n_heads=4, steps=100_000, total_steps=100_000, changes={77_777: {"loss/head_1": 9.9}})
    run = read_run_folder(folder)
    document = page([run])
    assert len(document) < 600_000
    assert "51.2 million" in " ".join(Checker(document).text)
    steps, losses = np.arange(1.0, 100_001), run.series["loss/head_1"].values
    thin = curves.envelope(steps, losses)
    assert len(thin.x) == curves.MOST
    assert float(thin.high[10:].max()) == 9.9
    assert (thin.low <= thin.mean).all()
    assert (thin.mean <= thin.high).all()


def test_a_folder_without_a_run_is_named_beside_a_run(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    _, text = paged(tmp_path / "empty", write(), output=tmp_path / "out.html")
    assert f"{tmp_path}/empty is not a run's folder: it has none of metrics.jsonl" in text
    assert "is not a run's folder" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.yaml"])
def test_only_an_earlier_page_is_replaced(name: str, write: Write, tmp_path: Path) -> None:
    run = write()
    before = (run / name).read_bytes()
    with pytest.raises(UserError, match="exists already, and is not"):
        report.main([str(run), "--output", str(run / name)])
    assert (run / name).read_bytes() == before
    for _ in range(2):
        report.main([str(run), "--output", str(tmp_path / "out.html")])


def test_without_anything_to_show_no_page_is_written(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    output = tmp_path / "out.html"
    runs = [tmp_path / name for name in ("empty", "file", "missing")]
    done = run_module("pipeline.report", *runs, "--output", output)
    assert done.returncode == 2
    assert not output.exists()
    assert "Traceback" not in done.stderr
    for message in (
        "empty is not a run's folder",
        "file is a file; give the folder of a run",
        "missing does not exist",
    ):
        assert message in done.stderr


def test_the_message_about_a_folder_of_runs_names_them(write: Write, tmp_path: Path) -> None:
    folder = write()
    with pytest.raises(UserError, match=f"is not a run's folder: .*; it contains runs: .*{folder.name}"):
        report.main([str(folder.parent), "--output", str(tmp_path / "out.html")])


def test_an_output_that_cannot_be_written_leaves_nothing_behind(write: Write, tmp_path: Path) -> None:
    folder, output = write(), tmp_path / "missing" / "out.html"
    with pytest.raises(UserError, match=r"missing/out.html cannot be written: there is no folder .*missing"):
        report.main([str(folder), "--output", str(output)])
    with pytest.raises(UserError, match="is no file; choose another name"):
        report.main([str(folder), "--output", str(tmp_path)])
    assert not list(tmp_path.glob(".*partial*"))
