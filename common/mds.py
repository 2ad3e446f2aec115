"""The one door to mosaicml-streaming, whose MDS shards both rooms meet in: `from common.mds import streaming`.

`import streaming` imports torchvision, which only its `streaming.vision` needs and we never use. torchvision's
wheel does not import beside a CPU build of torch (`operator torchvision::nms does not exist`), and a bare cluster
may not have it at all. Where torchvision fails to import, empty stand-ins take its place while streaming is
imported, and are taken out again. Where it works, nothing is touched.

Importing this module costs seconds (torch, transformers): import it late, inside the function that needs it.
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
}


def _is_torchvision(name: str) -> bool:
    return name.partition(".")[0] == "torchvision"


def torchvision_imports() -> bool:
    """Return whether torchvision imports here; a failed try leaves nothing of it in `sys.modules`."""
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError, AttributeError):
        for name in filter(_is_torchvision, list(sys.modules)):
            del sys.modules[name]
        return False
    return True


@contextmanager
def torchvision_stand_ins() -> Iterator[None]:
    """Put empty modules in torchvision's place in `sys.modules`, and take them out again."""
    for name, attributes in _STAND_INS.items():
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, loader=None)  # transformers asks find_spec, which refuses None
        vars(module).update(attributes)
        sys.modules[name] = module
    try:
        yield
    finally:
        for name in _STAND_INS:
            sys.modules.pop(name, None)


def import_streaming() -> ModuleType:
    """Import mosaicml-streaming, around torchvision where that is what breaks.

    Raises:
        ImportError: streaming itself, or anything but torchvision that it needs, does not import.
    """
    if "streaming" in sys.modules or torchvision_imports():
        return importlib.import_module("streaming")
    with torchvision_stand_ins():
        return importlib.import_module("streaming")


streaming = import_streaming()
