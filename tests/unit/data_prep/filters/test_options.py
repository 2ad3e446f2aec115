import argparse

import pytest

from data_prep.filters.options import (
    PRESETS,
    FilterOptions,
    add_filter_arguments,
    apply_preset,
    filter_options,
    filter_problems,
)
from data_prep.filters.starcoder import RULES


def _parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_filter_arguments(parser)
    parsed = parser.parse_args(arguments)
    apply_preset(parsed)
    return parsed


def _options(*arguments: str) -> FilterOptions:
    return filter_options(_parsed(*arguments))


def test_a_preset_gives_what_the_command_line_leaves_open() -> None:
    assert _options() == _options("--filters", "none") == FilterOptions()
    assert _options("--filters", "basic", "--max_line_length", "80") == FilterOptions(
        max_line_length=80, max_mean_line_length=100, min_alphanumeric_fraction=0.25
    )
    assert _options("--filters", "starcoder") == FilterOptions(rules=tuple(RULES))
    assert _options("--filters", "starcoder", "--rules", "xml", "--min_bytes", "9").rules == ("xml",)


@pytest.mark.parametrize("arguments", [["--license_field", "license"], ["--licenses", "mit"]])
def test_licences_need_their_field(arguments: list[str]) -> None:
    (problem,) = filter_problems(_parsed(*arguments))
    assert problem.startswith("--license_field and --licenses need each other")


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_and_their_limits_are_no_problem(preset: str) -> None:
    assert filter_problems(_parsed("--filters", preset, "--min_bytes", "0", "--max_bytes", "1")) == []
