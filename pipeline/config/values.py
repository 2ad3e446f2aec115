"""The values that are allowed, declared once: for its check, for the message about a wrong one, and for the docs.

A declaration is a type and its bounds, as pydantic has them: `Field(default=0.1, ge=0, le=100)` of a `Number`. It is
never repeated in words: `described` makes the words of it, such as "a number from 0 to 100", and `wrong` the message.
"""

import difflib
import math
import re
import types
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic.fields import FieldInfo

from common.command_line import expanded
from common.wording import shortened


def _from_text(value: object) -> object:
    """Return the number that a text is, as YAML 1.1 takes 1e5 for a text."""
    if not isinstance(value, str):
        return value
    try:
        return int(value)
    except ValueError:
        return float(value)


def _whole(value: object) -> int:
    """Return the whole number that a value is: 1e5 is 100,000, and true is none."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError("not a whole number")


def _number(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf:
        return value
    raise ValueError("not a finite number")


JsonWhole = Annotated[int, BeforeValidator(_whole)]
JsonNumber = Annotated[float, BeforeValidator(_number)]
Whole = Annotated[int, BeforeValidator(_whole), BeforeValidator(_from_text)]
"""A whole number of a recipe; its bounds stand in the field."""
Number = Annotated[float, BeforeValidator(_number), BeforeValidator(_from_text)]
"""A finite number of a recipe; its bounds stand in the field."""


def _path(text: str) -> str:
    path = expanded(text)
    if path is None:
        raise ValueError("it holds NUL, a user that does not exist, or a variable that is not set")
    return path


PathText = Annotated[
    str,
    Field(description="a path; ~ at its beginning and $NAME are replaced, and must have a value"),
    AfterValidator(_path),
]
"""A path of a recipe, with ~ and $NAME replaced."""


def declarations(section: Any) -> dict[str, FieldInfo]:
    """Return the declarations of a pydantic dataclass's fields, by name."""
    found: dict[str, FieldInfo] = section.__pydantic_fields__
    return found


def described(field: FieldInfo) -> str:
    """Return what a value may be, such as "a whole number from 1 to 100"; the field's `description` says it if set."""
    return field.description or _described(field.annotation, field.metadata)


def _described(annotation: Any, metadata: Sequence[Any]) -> str:
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *more = get_args(annotation)
        described_as = [item.description for item in more if isinstance(item, FieldInfo) and item.description]
        return described_as[0] if described_as else _described(inner, [*more, *metadata])
    if origin in (Union, types.UnionType):
        inner = next(option for option in get_args(annotation) if option is not types.NoneType)
        return f"{_described(inner, metadata)}, or null"
    if origin is Literal:
        *first, last = map(shown, get_args(annotation))
        return f"{', '.join(first)} or {last}" if first else last
    bounds = {name: bound for item in metadata for name, bound in _bounds_of(item)}
    if annotation is int:
        return f"a whole number{_from_to(bounds)}"
    if annotation is float:
        return f"a number{_from_to(bounds)}"
    names = {bool: "true or false", str: "a text"}
    return names[annotation] + (" that is not empty" if bounds.get("min_length") else "")


def _bounds_of(item: Any) -> Iterable[tuple[str, Any]]:
    names = ("gt", "ge", "lt", "le", "multiple_of", "min_length")
    return ((name, getattr(item, name)) for name in names if getattr(item, name, None) is not None)


def _from_to(bounds: dict[str, Any]) -> str:
    low, high = bounds.get("ge"), bounds.get("le")
    multiple = f", a multiple of {bounds['multiple_of']}" if "multiple_of" in bounds else ""
    if low is not None and high is not None:
        return f" from {figure(low)} to {figure(high)}{multiple}"
    words = (("above", "gt"), ("at least", "ge"), ("below", "lt"), ("at most", "le"))
    given = [f"{word} {figure(bounds[name])}" for word, name in words if name in bounds]
    return f" {' and '.join(given)}{multiple}" if given else multiple


def figure(number: float) -> str:
    """Return a number as messages and the docs show it, such as 1,000,000 or 1e-08."""
    return f"{int(number):,}" if number == int(number) else f"{number:g}"


def shown(value: object) -> str:
    """Return a value as a recipe has it, such as null, true or 'text'; a long one without its middle."""
    plain = {None: "null", True: "true", False: "false"}
    text = plain[value] if value is None or isinstance(value, bool) else repr(value)
    return shortened(text, most=120)


def shown_key(key: object) -> str:
    """Return a key as messages show it: plain if it looks like a name, quoted and shortened if not."""
    return key if isinstance(key, str) and re.fullmatch(r"[\w.-]{1,60}", key) else shown(key)


def wrong(name: str, value: object, field: FieldInfo) -> str:
    """Return the message about a value that is not what its declaration says."""
    quote = isinstance(value, int | float) and not isinstance(value, bool) and _takes_text(field.annotation)
    return f"{name}={shown(value)} must be {described(field)}" + ("; put it in quotes" if quote else "")


def _takes_text(annotation: Any) -> bool:
    return annotation is str or str in get_args(annotation)


def suggestion(word: object, known: Iterable[str]) -> str | None:
    """Return which of the known names a misspelt one was meant to be, if that is clear."""
    found = difflib.get_close_matches(str(word)[:200], list(known), n=1)
    return found[0] if found else None
