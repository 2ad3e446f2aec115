"""The length of the text that a browser shows of an HTML page, in time proportional to the page.

Python's html.parser takes quadratic time for pages such as `<a` and a line end, repeated (CPython #135462): 30 s for
25 kB. Here each search that finds nothing is the last one: as in the HTML standard (section 13.2.5, Tokenization), a
tag, a comment, a script or a style that never ends hides all that follows.
"""

import html
import re

_HIDDEN = ("script", "style")  # elements whose content is not text
_ATTRIBUTES = r"""(?:[^>=]++|=\s*+(?:"[^"]*+"|'[^']*+'|[^\s>]*+))*+"""  # only after `=` does a quote hide a `>`
_OPENS_MARKUP = re.compile(r"<[a-zA-Z/!?]")
_MARKUP = re.compile(
    r"<!--(?:-?>|.*?--!?>)"  # a comment
    r"|<(?:!(?!--)|\?|/(?![a-zA-Z]))[^>]*+>"  # a declaration, or what the standard reads as a comment
    rf"|<(?P<slash>/?)(?P<name>[a-zA-Z][^\s/>]*+){_ATTRIBUTES}>",
    re.DOTALL,
)
_END_OF = {name: re.compile(rf"</{name}(?=[\s/>])", re.IGNORECASE) for name in _HIDDEN}
_LONG_NUMBER = re.compile(r"&#(?:[xX][0-9a-fA-F]{8,}+|[0-9]{8,}+);?")  # beyond Unicode; `int` refuses 5,000 digits


def visible_text_length(page: str) -> int:
    """Return the number of characters outside markup, scripts and styles; a character reference is one character."""
    length = at = 0
    while at < len(page):
        start = page.find("<", at)
        length += _text_length(page[at : start if start >= 0 else len(page)])
        if start < 0:
            break
        if not _OPENS_MARKUP.match(page, start):
            length, at = length + 1, start + 1
            continue
        markup = _MARKUP.match(page, start)
        end = _end_of_element(page, markup) if markup else None
        if end is None:  # it never ends
            break
        at = end
    return length


def _end_of_element(page: str, markup: re.Match[str]) -> int | None:
    """Return where text goes on after markup, behind the content of a script or a style; None if that never ends."""
    name = (markup["name"] or "").lower()
    if name not in _HIDDEN or markup["slash"] or markup[0].endswith("/>"):
        return markup.end()
    end = _END_OF[name].search(page, markup.end())
    return end.start() if end else None


def _text_length(text: str) -> int:
    return len(html.unescape(_LONG_NUMBER.sub("\ufffd", text))) if "&" in text else len(text)
