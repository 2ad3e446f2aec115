"""The cost of watching a run, from given seconds."""

import re
from pathlib import Path

import pytest

from benchmarks.monitoring import CADENCES, costs_s, main, table
from common.command_line import UserError
from tests.helpers.monitored import config_in

SECONDS = {
    "plain step": [1.0, 9.0, 2.0],  # the second while something else ran
    "step with norms": [1.5, 9.5, 2.5],
    "norms written": [0.1, 0.1, 0.7],
    "report": [0.2, 0.2, 0.9],
    "preview": [4.0, 4.0, 5.0],
}


def test_each_part_is_weighted_by_its_cadence(tmp_path: Path) -> None:
    assert costs_s(SECONDS) == pytest.approx({"report": 0.2, "gradient norms": 0.6, "preview": 4.0})
    assert CADENCES == {"report": 10, "gradient norms": 100, "preview": 100}
    text = table(config_in(tmp_path), SECONDS)
    assert re.search(r"\| report +\| 10 steps +\| 0.2000 +\| 1.00% +\|", text)
    assert text.endswith("watched over not watched: 1.0330")  # 0.02 + 0.006 + 0.04 over 2 seconds


def test_a_model_that_is_too_small_for_its_heads_is_refused() -> None:
    for arguments in (["--n_layers", "3"], ["--dim", "100"]):
        with pytest.raises(UserError, match="--n_layers must be at least 4, and --dim a multiple of 64"):
            main(arguments)
