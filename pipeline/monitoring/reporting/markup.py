"""Builds HTML and SVG with function calls. Text is escaped unless it is `Html`, so that no file can inject markup."""

import html
from collections.abc import Iterable

Child = str | Iterable["Child"]


class Html(str):
    """Markup; it is not escaped again."""


def joined(*children: Child) -> Html:
    """Return the children joined: plain strings escaped, nested iterables flattened."""
    return Html("".join(_html(child) for child in children))


def tag(name: str, *children: Child, **attributes: object) -> Html:
    """Return an element. In attribute names `_` becomes `-`, and a trailing `_` is dropped; None leaves one out.

    Elements without children get an end tag too, which SVG and HTML (except its void elements) accept.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{given}>{joined(*children)}</{name}>")


def _html(child: Child) -> str:
    if isinstance(child, Html):
        return child
    return html.escape(child) if isinstance(child, str) else joined(*child)
