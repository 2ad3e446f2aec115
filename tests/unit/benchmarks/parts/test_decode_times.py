from benchmarks.parts.decode_times import acceptance, tokens_per_forward
from pipeline.inference.decoding.blockwise import Generation


def test_counts_of_several_generations_add_up() -> None:
    generations = [
        Generation(token_ids=[[1] * 7, [1] * 5], forwards=[3, 1], accepted=[[2, 1], [1, 1]], seconds=1.0),
        Generation(token_ids=[[1] * 5], forwards=[4], accepted=[[0, 0]], seconds=1.0),
    ]
    assert tokens_per_forward(generations) == 14 / 8
    assert acceptance(generations) == ([3 / 8, 2 / 8], 5 / 16)
    assert acceptance([Generation(token_ids=[[1, 1]], forwards=[1], accepted=[[]], seconds=1.0)]) == ([], None)
