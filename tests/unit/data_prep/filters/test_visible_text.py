"""The visible text of pages, against html.parser on pages that are well formed, and by the HTML standard on others."""

from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.filters.visible_text import visible_text_length


class _Visible(HTMLParser):
    """Collects the text outside scripts and styles."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.text, self._hidden = "", False

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._hidden = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False

    def handle_data(self, data: str) -> None:
        self.text += "" if self._hidden else data


TEXTS = st.sampled_from(["a", "é☃", " \n", "x > y", "&amp;", "&#65;", "&#x1F600;", "&notit;", "& b", "1 < 2", "a=\"b'"])
ATTRIBUTES = st.sampled_from(["", " a", ' a="b > c"', " a='<p>'", " a = b", ' a="\'" b', ' href="x?a=1&amp;b=2"'])
VOID = st.sampled_from(["<!-- a > <b> -->", "<!DOCTYPE html>", "<br>", "<br/>", "<?php x ?>", "<!---->", "</p >"])
CODE = st.sampled_from(["var x = '<p>no</p>';", "p > a {}", "", "if (a < b) {}", "</scrip"])


def _element(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    names = st.sampled_from(["p", "title", "DIV", "my-tag"])
    return st.builds(lambda name, more, body: f"<{name}{more}>{body}</{name}>", names, ATTRIBUTES, inner)


HIDDEN = st.builds(
    lambda name, more, code: f"<{name}{more}>{code}</{name}>", st.sampled_from(["script", "STYLE"]), ATTRIBUTES, CODE
)
PAGES = st.recursive(TEXTS | VOID | HIDDEN, lambda inner: _element(st.lists(inner).map("".join)), max_leaves=12)


@settings(max_examples=500, deadline=None)
@given(st.lists(PAGES, max_size=6).map("".join))
def test_well_formed_pages_give_the_text_that_html_parser_gives(page: str) -> None:
    parser = _Visible()
    parser.feed(page)
    parser.close()
    assert visible_text_length(page) == len(parser.text)


@pytest.mark.parametrize(
    ("page", "visible"),
    [
        ("", ""),
        ("<title>ab</title><script>var x = '<p>no</p>';</script><p>c&amp;d<br>e</p><style>p {}</style>", "abc&de"),
        ("a<script>b</SCRIPT x>c", "ac"),
        ("a<script/>b", "ab"),
        ("a<script>b</scripts>c", "a"),
        ("a<p b", "a"),  # a tag, a comment or a script that never ends hides the rest
        ('a<p b="c>d', "ad"),  # but for a quote that never ends
        ("a<!--b>c", "a"),
        ("a<!-->b", "ab"),
        ("a<!--b--!>c", "ac"),
        ("a<![CDATA[b]]>c", "ac"),
        ("a</>b</ c>d", "abd"),
        ("a < b << c <1>", "a < b << c <1>"),
        ("&#" + "9" * 5000 + ";", "\ufffd"),
        ("&#x" + "F" * 5000, "\ufffd"),
    ],
)
def test_pages_by_the_standard(page: str, visible: str) -> None:
    assert visible_text_length(page) == len(visible)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="<>/!-?[]&#;\"'= \nascriptyle", max_size=60))
def test_any_text_has_a_length(page: str) -> None:
    assert 0 <= visible_text_length(page) <= len(page)
