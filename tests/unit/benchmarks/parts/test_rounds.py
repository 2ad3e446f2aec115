from benchmarks.parts.rounds import in_turns, ratio, spread


def test_every_other_round_goes_backwards_and_the_first_do_not_count() -> None:
    calls: list[str] = []

    def case(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    found = in_turns({name: lambda name=name: case(name) for name in "ab"}, warm_up=1, repeats=2)  # type: ignore[misc]
    assert "".join(calls) == "baabba"
    assert found == {"a": [3, 6], "b": [4, 5]}


def test_ratios_are_taken_within_rounds() -> None:
    assert ratio([2.0, 4.0, 60.0], [1.0, 2.0, 30.0]).upper == 2


def test_a_spread_has_median_and_quartiles() -> None:
    quartiles = spread([4.0, 1.0, 2.0, 3.0, 5.0])
    assert (quartiles.lower, quartiles.median, quartiles.upper) == (2.0, 3.0, 4.0)
    assert str(spread([0.12345, 0.5, 1234.5])) == "0.5 (0.312 to 618)"
