"""No rule or filter takes more than a time proportional to the text, whatever the text is.

A quadratic one takes minutes for a single text of this size, and there are hundreds of texts; all of them together take
seconds. They run in a process that can be ended.
"""

import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY
from tests.helpers.own_problems import HUMANEVAL, write_jsonl

TIMEOUT_S = 900  # some 30 times what a slow machine takes
PROGRAM = r"""
import itertools, sys
from data_prep.filters.options import FilterOptions
from data_prep.filters.reasons import rule_broken
from data_prep.filters.starcoder import RULES
from data_prep.sources.documents import Document

UNITS = [
    "<", "<a", "<a\n", "<a b=", "<!--", "--", "<![CDATA[", "<!x", "<?", "</", "<script>", "</script", ">", '"', '="',
    "='", "&", "&#", "&#x", "9", "ab ", "ab,", "0x", "\\x", "\\u00e9", "\\u00", "A=+/", " ", "\n", "\r", "\u2028", "_",
]
OPTIONS = [FilterOptions(rules=(name,)) for name in RULES] + [
    FilterOptions(max_line_length=1 << 40), FilterOptions(max_mean_line_length=1e12),
    FilterOptions(min_alphanumeric_fraction=0.0), FilterOptions(min_bytes=1, max_bytes=1 << 40),
    FilterOptions(decontaminate=(sys.argv[1],)),
    FilterOptions(license_field="license", licenses=("mit",)),
]
n_texts = 0
for size, units in ((60_000, itertools.product(UNITS, UNITS)), (1_000_000, ((unit,) for unit in UNITS))):
    for parts in units:
        unit = "".join(parts)
        text = unit * (size // len(unit))
        document = Document(text, text.encode(), "a.html", 0, {})
        for options in OPTIONS:
            rule_broken(document, options)
        n_texts += 1
print(n_texts)
"""


def test_the_time_of_every_filter_is_bounded_on_any_text(tmp_path: Path) -> None:
    benchmark = write_jsonl(tmp_path / "humaneval.jsonl", HUMANEVAL)
    words = [sys.executable, "-c", PROGRAM, str(benchmark)]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 32 * 32 + 32
