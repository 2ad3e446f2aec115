"""The one door to mosaicml-streaming, whose MDS shards both rooms meet in: `from common.mds import streaming`.

`import streaming` imports torchvision, which only its `streaming.vision` needs, and transformers, for a tokenizer in
`streaming.text` and two types that its loader asks whether a batch is; we never use any of them. torchvision's wheel
does not import beside a CPU build of torch (`operator torchvision::nms does not exist`), a bare cluster may have
neither, and transformers takes seconds and 270 MB of every rank. So empty stand-ins take the place of both while
streaming is imported, and are taken out again: whoever imports them later gets the real ones. What is imported already
is left alone.

Importing this module costs seconds (torch): import it late, inside the function that needs it.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType

_STAND_INS: dict[str, dict[str, object]] = {
    "torchvision": {},
    "torchvision.datasets": {"VisionDataset": object},
    "torchvision.transforms": {},
    "torchvision.transforms.functional": {"to_tensor": None},
    "transformers": {},
    "transformers.feature_extraction_utils": {"BatchFeature": type("BatchFeature", (), {})},
    "transformers.models": {},
    "transformers.models.auto": {},
    "transformers.models.auto.tokenization_auto": {"AutoTokenizer": None},
    "transformers.tokenization_utils_base": {"BatchEncoding": type("BatchEncoding", (), {})},
}


@contextmanager
def stand_ins() -> Iterator[None]:
    """Put empty modules in the place of packages that nobody has imported yet, and take them out again."""
    absent = [name for name in _STAND_INS if name.partition(".")[0] not in sys.modules]
    for name in absent:
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, loader=None)  # find_spec refuses None
        vars(module).update(_STAND_INS[name])
        sys.modules[name] = module
    try:
        yield
    finally:
        for name in absent:
            sys.modules.pop(name, None)


def import_streaming() -> ModuleType:
    """Import mosaicml-streaming without what we do not use of it.

    Raises:
        ImportError: streaming itself, or anything else that it needs, does not import.
    """
    with stand_ins():
        return importlib.import_module("streaming")


streaming = import_streaming()
