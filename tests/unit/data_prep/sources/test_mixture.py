import pytest

from common.command_line import UserError
from data_prep.sources.documents import Selection
from data_prep.sources.mixture import parse_mix


@pytest.mark.parametrize(
    ("word", "path", "selection"),
    [
        ("all=corpus:1", "corpus", Selection("all", 1.0)),
        ("py=a/b.jsonl#Python:2.5", "a/b.jsonl", Selection("py", 2.5, ("python",))),
        ("net=x#c#,f#, c++:0.25", "x", Selection("net", 0.25, ("c#", "f#", "c++"))),
        ("set=hf:some/name:config@test#python:3", "hf:some/name:config@test", Selection("set", 3.0, ("python",))),
        ("pipe=-:2", "-", Selection("pipe", 2.0)),
    ],
)
def test_a_mixture_names_sources_weights_and_languages(word: str, path: str, selection: Selection) -> None:
    assert parse_mix([word]) == [(path, selection)]


def test_every_mistake_in_a_mixture_is_reported() -> None:
    words = ["corpus", "a=corpus", "a=b:0", "a=b:-1", "a=b:x", "a=b:nan", "a=b:inf", "=b:1", "a=b:1"]
    with pytest.raises(UserError) as raised:
        parse_mix(words)
    message = str(raised.value)
    assert message.count("is not NAME=SRC[#LANGUAGE,...]:WEIGHT") == 3
    assert message.count("the weight must be above 0") == 5
