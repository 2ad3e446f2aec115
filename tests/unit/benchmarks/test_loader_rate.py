from benchmarks.loader_rate import samples_per_s


def test_the_paced_rate_follows_from_the_flops() -> None:
    # The 7B model has 6.7e9 parameters of 6 FLOPs per token, and attention; windows have 4,096 tokens; 989e12 FLOPs/s.
    assert 989e12 / (6 * 8.5e9) / 4096 < samples_per_s("7B", mfu=1) < 989e12 / (6 * 6.7e9) / 4096
