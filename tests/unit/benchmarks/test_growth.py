from benchmarks.growth import AXES, points_of
from benchmarks.parts.steps import CaseTimes


def test_proportional_growth_follows_the_flops() -> None:
    axis = AXES["micro_batch"]
    measured = [
        CaseTimes(case=axis.case(value), seconds=[0.5], peak_bytes=1, resident_bytes=1) for value in axis.values
    ]
    assert [point.expected_s for point in points_of(axis, measured)] == [0.5 * value for value in axis.values]
