"""A declaration is the check, the message and the words of the docs in one."""

import re
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from pipeline.config.schema import SECTIONS
from pipeline.config.values import (
    JsonNumber,
    JsonWhole,
    Number,
    PathText,
    Whole,
    declarations,
    described,
    shown,
    shown_key,
    suggestion,
    wrong,
)

IN_HUNDRED = Field(ge=1, le=100)


@pytest.mark.parametrize(
    ("declaration", "words"),
    [
        (Annotated[Whole, IN_HUNDRED], "a whole number from 1 to 100"),
        (Annotated[Whole | None, IN_HUNDRED], "a whole number from 1 to 100, or null"),
        (Annotated[JsonWhole, Field(ge=2, le=2**63 - 1, multiple_of=2)],
         "a whole number from 2 to 9,223,372,036,854,775,807, a multiple of 2"),
        (Annotated[Number, Field(gt=0, le=1e12)], "a number above 0 and at most 1,000,000,000,000"),
        (Annotated[Number, Field(ge=1e-30, le=1)], "a number from 1e-30 to 1"),
        (Annotated[JsonNumber, Field(ge=0, lt=1)], "a number at least 0 and below 1"),
        (bool, "true or false"),
        (bool | None, "true or false, or null"),
        (str, "a text"),
        (Annotated[str | None, Field(min_length=1)], "a text that is not empty, or null"),
        (PathText | None, "a path; ~ at its beginning and $NAME are replaced, and must have a value, or null"),
        (Literal["a"], "'a'"),
        (Literal["a", "b"] | None, "'a' or 'b', or null"),
        (Annotated[tuple[str, ...], Field(description="a list of texts")], "a list of texts"),
    ],
)  # fmt: skip
def test_a_declaration_in_words(declaration: Any, words: str) -> None:
    assert described(FieldInfo.from_annotation(declaration)) == words


@pytest.mark.parametrize(
    ("value", "number"),
    [(7, 7), (7.0, 7), ("7", 7), ("7e1", 70), ("1_0", 10), (True, None), ("true", None), (7.5, None), ("7.5", None),
     (101, None), (0, None), ("", None), (None, None), ("nan", None), ("inf", None), ([7], None), (1e300, None)],
)  # fmt: skip
def test_whole_numbers_of_recipes(value: object, number: int | None) -> None:
    adapter = TypeAdapter(Annotated[Whole, IN_HUNDRED])
    if number is None:
        with pytest.raises(ValidationError):
            adapter.validate_python(value)
    else:
        found = adapter.validate_python(value)
        assert (found, type(found)) == (number, int)


@pytest.mark.parametrize(
    ("value", "is_one"), [(7, True), (7.5, True), ("7.5", True), ("1e1", True), (True, False), ("", False),
                          (float("nan"), False), ("-inf", False), (10**400, False), (None, False), ({}, False)],
)  # fmt: skip
def test_numbers_of_recipes(value: object, is_one: bool) -> None:
    adapter = TypeAdapter(Annotated[Number, IN_HUNDRED])
    if is_one:
        assert adapter.validate_python(value) == float(str(value))
    else:
        with pytest.raises(ValidationError):
            adapter.validate_python(value)


@pytest.mark.parametrize("declaration", [JsonWhole, JsonNumber])
def test_a_text_is_no_number_in_json(declaration: Any) -> None:
    assert TypeAdapter(declaration).validate_python(5e8) == 500_000_000
    with pytest.raises(ValidationError):
        TypeAdapter(declaration).validate_python("5e8")


def test_every_number_of_a_recipe_has_a_lower_and_an_upper_bound() -> None:
    for section in SECTIONS.values():
        for name, field in declarations(section).items():
            words = described(field)
            bounds = re.search(" from .* to | (above|at least) .* and (at most|below) ", f"{words} ")
            assert bounds or "number" not in words, name


def test_wrong_values_and_names_are_shown_safely() -> None:
    text: Any = Annotated[str, Field(min_length=1)]
    field = FieldInfo.from_annotation(text)
    assert wrong("run.dir", 2024, field) == "run.dir=2024 must be a text that is not empty; put it in quotes"
    assert wrong("run.dir", None, field) == "run.dir=null must be a text that is not empty"
    assert len(shown("\x1b" * 10_000)) < 200
    assert shown_key("lr") == "lr"
    assert shown_key("\x1b[2J") == "'\\x1b[2J'"
    assert suggestion("n_layres", ["n_heads", "n_layers"]) == "n_layers"
    assert suggestion("x" * 100_000, ["n_heads"]) is None
