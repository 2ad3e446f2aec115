"""The files of torch.distributed.checkpoint, read without trusting them and written without naming this machine.

    .metadata           a pickle: which parts each tensor has, and where they lie
    __0_0.distcp ...    the parts

A pickle calls whatever it names, so one that somebody else made could run anything. This reader knows the few names
that such metadata really has, refuses every other one before it is imported, and checks that what came out is tensors
alone, with parts inside the folder. torch itself reads the parts as plain tensors (`weights_only`); it unpickles
objects that are no tensors blindly, of which our checkpoints have none.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.futures import Future

from common.command_line import UserError
from common.files import inside

METADATA = ".metadata"
_CLASSES: tuple[type, ...] = (
    metadata.Metadata,
    metadata.TensorStorageMetadata,
    metadata.TensorProperties,
    metadata._MEM_FORMAT_ENCODING,
    metadata.ChunkStorageMetadata,
    metadata.MetadataIndex,
    metadata.StorageMeta,
    filesystem._StorageInfo,
)
_KNOWN: Mapping[tuple[str, str], Any] = {
    **{(known.__module__, known.__name__): known for known in _CLASSES},
    ("torch", "Size"): torch.Size,
    ("torch", "float32"): torch.float32,
    ("torch.serialization", "_get_layout"): {"torch.strided": torch.strided}.__getitem__,
    ("pathlib", "PosixPath"): PurePosixPath,  # where the checkpoint was saved
    ("pathlib._local", "PosixPath"): PurePosixPath,  # by Python 3.13
}


class Reader(dcp.FileSystemReader):
    """Reads one folder; its metadata at once, so that what is wrong is said before any rank waits for another.

    Raises:
        UserError: the metadata is missing, or is not what our checkpoints have.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._metadata = _read_metadata(directory / METADATA)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return the metadata; torch may ask for a rank's own, which our checkpoints do not have."""
        return self._metadata

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read the parts of a plan.

        Raises:
            UserError: a part is no plain tensor.
        """
        try:
            return super().read_data(plan, planner)
        except pickle.UnpicklingError as error:
            raise UserError(f"{self.path} holds parts that are no plain tensors; do not use it") from error


class Writer(dcp.FileSystemWriter):
    """Writes one folder, without its path, which torch would put into the metadata."""

    def storage_meta(self) -> StorageMeta:
        """Return what is recorded of where and when the folder was written."""
        return StorageMeta(save_id=self.save_id)


def load(state: dict[str, Any], reader: Reader, *, no_dist: bool = False) -> None:
    """Fill the tensors of `state`; every rank must call it, or one alone with `no_dist`.

    Raises:
        UserError: a part is no plain tensor.
        CheckpointException: anything else kept a rank from reading.
    """
    try:
        dcp.load(state, storage_reader=reader, no_dist=no_dist)
    except dcp.CheckpointException as error:
        for cause, _ in error.failures.values():
            if isinstance(cause, UserError):
                raise cause from error
        raise


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, *, path: Path) -> None:
        super().__init__(file)
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        """Return what a pickle names, if our checkpoints' do."""
        if (module, name) not in _KNOWN:
            raise UserError(
                f"{self._path} names {module}.{name}, which no checkpoint of ours has and which could run anything; it"
                " was not read: do not use it"
            )
        return _KNOWN[module, name]


def _read_metadata(path: Path) -> Metadata:
    try:
        with path.open("rb") as file:
            found = _Unpickler(file, path=path).load()
        _check(found, path.parent)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    except Exception as error:  # a pickle that was made by hand fails in any way
        raise UserError(f"{path} is not the metadata of a checkpoint ({error!r})") from error
    assert isinstance(found, Metadata)
    found.storage_meta = StorageMeta()
    return found


def _check(found: Any, directory: Path) -> None:
    """Check what pickled metadata consists of, whose fields may hold anything.

    Raises:
        UserError: a part lies outside of the folder.
        Exception: anything else is not as it should be.
    """
    places = _of(dict, _of(Metadata, found).storage_data)
    for name, tensor in _of(dict, found.state_dict_metadata).items():
        _of(metadata.TensorProperties, _of(metadata.TensorStorageMetadata, tensor).properties)
        n_dimensions = len(_of(torch.Size, tensor.size))
        for chunk in _of(list, tensor.chunks):
            _of(metadata.ChunkStorageMetadata, chunk)
            if not len(_of(torch.Size, chunk.offsets)) == len(_of(torch.Size, chunk.sizes)) == n_dimensions:
                raise ValueError(f"parts of {name!r} have another number of dimensions")
            place = _of(filesystem._StorageInfo, places[metadata.MetadataIndex(_of(str, name), chunk.offsets)])
            inside(directory, place.relative_path, named_in=METADATA)
            if min(_of(int, place.offset), _of(int, place.length)) < 0 or place.transform_descriptors:
                raise ValueError(f"{name!r} lies at {place}")


def _of(expected: type, value: Any) -> Any:
    """Return `value`, which is exactly of a type."""
    if type(value) is not expected:
        raise TypeError(f"a {type(value).__name__} instead of a {expected.__name__}")
    return value
