"""The files of torch.distributed.checkpoint: a reader that does not trust them, a writer that names no local path.

    .metadata           a pickle: which parts each tensor has, and where they are stored
    __0_0.distcp ...    the parts

Unpickling calls whatever the pickle names, so a pickle made by somebody else could run anything. The reader knows the
few names that such metadata needs and refuses every other one before it is imported. It then checks that the metadata
describes tensors only, with all parts inside the folder. torch reads the parts with `weights_only`. It would unpickle
objects other than tensors without this protection, so the reader refuses checkpoints that have any; ours have none.
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
from common.small_files import open_regular_file

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
    ("pathlib", "PosixPath"): PurePosixPath,  # the folder that the checkpoint was saved in
    ("pathlib._local", "PosixPath"): PurePosixPath,  # the same, pickled by Python 3.13
}


class Reader(dcp.FileSystemReader):
    """Reads one folder. The constructor reads the metadata, so bad metadata fails before ranks wait for each other."""

    def __init__(self, directory: Path) -> None:
        """Read and check the metadata.

        Raises:
            UserError: the metadata is missing, or is not like that of our checkpoints.
        """
        super().__init__(directory)
        self._metadata = _read_metadata(directory / METADATA)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return the metadata; the arguments ask for one rank's metadata, which our checkpoints do not have."""
        return self._metadata

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read the parts that a plan lists.

        Raises:
            UserError: a part is not a plain tensor.
        """
        try:
            return super().read_data(plan, planner)
        except pickle.UnpicklingError as error:
            raise UserError(f"{self.path} holds parts that are not plain tensors; do not use it") from error


class Writer(dcp.FileSystemWriter):
    """Writes one folder; leaves out its path, which torch would write into the metadata."""

    def storage_meta(self) -> StorageMeta:
        """Return the record of this save for the metadata, without the path."""
        return StorageMeta(save_id=self.save_id)


def stored_files(directory: Path) -> set[str]:
    """Return the names of all files in `directory` that the parts of its tensors are stored in.

    Raises:
        UserError: the metadata is missing, or is not like that of our checkpoints.
    """
    places = _read_metadata(directory / METADATA).storage_data.values()
    return {str(PurePosixPath(place.relative_path)) for place in places}


def load(state: dict[str, Any], reader: Reader, *, no_dist: bool = False) -> None:
    """Fill the tensors of `state`. Every rank must call it, or a single process with `no_dist`.

    Raises:
        UserError: a part is not a plain tensor.
        CheckpointException: a rank could not read its parts for another reason.
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
        """Return what a pickle names, if it is one of the known names.

        Raises:
            UserError: the name is not known.
        """
        if (module, name) not in _KNOWN:
            raise UserError(
                f"{self._path} names {module}.{name}, which none of our checkpoints does and which could run anything;"
                " it was not read: do not use it"
            )
        return _KNOWN[module, name]


def _read_metadata(path: Path) -> Metadata:
    try:
        with open_regular_file(path, name=path) as file:
            found = _Unpickler(file, path=path).load()
        _check(found, path.parent)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # a malicious pickle can raise anything
        raise UserError(f"{path} is not the metadata of a checkpoint: {error!r}") from error
    assert isinstance(found, Metadata)
    found.storage_meta = StorageMeta()
    return found


def _check(found: Any, directory: Path) -> None:
    """Check every field of unpickled metadata, since a pickle can put anything into it.

    Raises:
        UserError: a part is outside the folder.
        Exception: anything else is wrong.
    """
    places = _of(dict, _of(Metadata, found).storage_data)
    for place in places.values():
        inside(directory, _of(filesystem._StorageInfo, place).relative_path, named_in=METADATA)
    for name, tensor in _of(dict, found.state_dict_metadata).items():
        _of(metadata.TensorProperties, _of(metadata.TensorStorageMetadata, tensor).properties)
        n_dimensions = len(_of(torch.Size, tensor.size))
        for chunk in _of(list, tensor.chunks):
            _of(metadata.ChunkStorageMetadata, chunk)
            if not len(_of(torch.Size, chunk.offsets)) == len(_of(torch.Size, chunk.sizes)) == n_dimensions:
                raise ValueError(f"the parts of {name!r} have the wrong number of dimensions")
            place = places[metadata.MetadataIndex(_of(str, name), chunk.offsets)]
            if min(_of(int, place.offset), _of(int, place.length)) < 0 or place.transform_descriptors:
                raise ValueError(f"{name!r} is stored at {place}")


def _of(expected: type, value: Any) -> Any:
    """Return `value`.

    Raises:
        TypeError: its type is not exactly `expected`.
    """
    if type(value) is not expected:
        raise TypeError(f"a {type(value).__name__} instead of a {expected.__name__}")
    return value
