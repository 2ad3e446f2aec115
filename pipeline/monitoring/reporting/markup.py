"""HTML and SVG by function calls. Text is escaped unless it is `Html` already, so that no file's content is markup."""

import html
from collections.abc import Iterable

Child = str | Iterable["Child"]


class Html(str):
    """Markup, which is not escaped again."""


def joined(*children: Child) -> Html:
    """Return children one after another; of plain strings the text, and nested iterables flattened."""
    return Html("".join(_html(child) for child in children))


def tag(name: str, *children: Child, **attributes: object) -> Html:
    """Return an element. In attributes' names `_` stands for `-`, a last one for nothing; those of None are left out.

    Elements without children are written with an end tag too, which both HTML (but for its void elements) and SVG read.
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
