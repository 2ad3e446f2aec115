"""Values that are not finite, or that another precision cannot hold, are counted and named."""

import pytest
import torch

from common.command_line import UserError
from pipeline.weights.formats.start import fill
from pipeline.weights.formats.stored_model import load_model
from pipeline.weights.formats.values import Conversion
from tests.helpers.exports import in_memory
from tests.helpers.references import tiny_model


def report(conversion: Conversion) -> str:
    with pytest.raises(UserError) as error:
        conversion.finish(heading="m")
    return str(error.value)


def test_what_fits_is_converted() -> None:
    conversion, weight = Conversion(dtype=torch.float16), torch.tensor([0.0, -1.5, 65_504, 1e-9])
    assert torch.equal(conversion.converted(weight, name="w"), weight.half())
    assert Conversion().converted(weight, name="w") is weight
    conversion.finish(heading="m")


@pytest.mark.parametrize(
    ("dtype", "values", "message"),
    [
        (torch.float16, [1e5, -7e4, 1.0], "m: 'w' has 2 values that float16 cannot hold"),
        (torch.bfloat16, [3.4e38, 1e5], "m: 'w' has 1 value that bfloat16 cannot hold"),
        (torch.bfloat16, [float("nan")], "m: 'w' has 1 value that is not finite"),
        (None, [float("inf"), float("-inf"), 1.0], "m: 'w' has 2 values that are not finite"),
    ],
)
def test_what_does_not_fit_is_counted(dtype: torch.dtype | None, values: list[float], message: str) -> None:
    conversion = Conversion(dtype=dtype)
    conversion.converted(torch.tensor(values), name="w")
    assert report(conversion) == message


def test_a_few_of_many_weights_are_named() -> None:
    conversion = Conversion()
    for index in range(25):
        conversion.converted(torch.tensor([float("nan")]), name=f"w{index}")
    lines = report(conversion).splitlines()
    assert len(lines) == 12
    assert lines[-1] == "  - and 15 more"


def test_a_model_that_is_not_finite_is_neither_loaded_nor_trained_on() -> None:
    model = tiny_model()
    model.heads.output.weight.data[3, 4] = float("nan")
    with pytest.raises(UserError, match=r"memory cannot be loaded: 'heads\.output\.weight' has 1 value"):
        load_model(in_memory(model))
    with pytest.raises(UserError, match=r"model\.init_from=memory cannot be used: 'heads\.output\.weight' has 1 value"):
        fill(tiny_model(), in_memory(model), new_heads="copy")


def test_loading_in_another_precision_counts_too() -> None:
    model = tiny_model()
    model.trunk.tok_embeddings.weight.data[0, 0] = 1e5
    with pytest.raises(UserError, match=r"'trunk\.tok_embeddings\.weight' has 1 value that float16 cannot hold"):
        load_model(in_memory(model), dtype=torch.float16)
    assert load_model(in_memory(model)).trunk.tok_embeddings.weight[0, 0] == 1e5
