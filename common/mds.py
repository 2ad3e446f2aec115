"""The only module that imports mosaicml-streaming: `from common.mds import streaming`.

`import streaming` also imports torchvision, which only `streaming.vision` needs, and transformers, for a tokenizer in
`streaming.text` and for two types that its loader compares batches with. This project uses none of them. torchvision's
wheel cannot be imported beside a CPU build of torch (`operator torchvision::nms does not exist`), a minimal cluster
installation may have neither package, and transformers costs seconds and 270 MB of memory on every rank. Therefore
empty stand-ins replace both packages while streaming is imported, and are removed afterwards, so that later imports
find the real packages. A package that was imported before is left alone.

Importing this module takes seconds (torch): import it late, inside the function that needs it.
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
    """Replace packages that are not imported yet by empty modules, and remove these afterwards."""
    absent = [name for name in _STAND_INS if name.partition(".")[0] not in sys.modules]
    for name in absent:
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, loader=None)  # find_spec fails if this is None
        vars(module).update(_STAND_INS[name])
        sys.modules[name] = module
    try:
        yield
    finally:
        for name in absent:
            sys.modules.pop(name, None)


def import_streaming() -> ModuleType:
    """Import mosaicml-streaming without torchvision and transformers.

    Raises:
        ImportError: streaming, or another package that it needs, cannot be imported.
    """
    with stand_ins():
        return importlib.import_module("streaming")


streaming = import_streaming()
