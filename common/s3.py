"""Folders in S3, or in storage that speaks its protocol, as paths: s3://bucket/prefix.

`S3Path` has the methods of `pathlib.Path` that readers need (`/`, `name`, `read_bytes`, ...), so that the same code
reads from both; a missing object is a FileNotFoundError, too. An object appears whole or not at all. What is written is
asked back, because an endpoint that is not S3 may answer each request with a web page and store nothing.

boto3 looks up credentials, region and endpoint in its usual places (AWS_PROFILE, AWS_ENDPOINT_URL, ...). The endpoint
may also be set by S3_ENDPOINT_URL, which streaming reads.
"""

import errno
import functools
import hashlib
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from common.command_line import UserError, one_line
from common.files import partial_path

SCHEME = "s3://"
_CONNECT_TIMEOUT_S = 10
_CONNECTIONS = 40  # each file is transferred in up to 10 pieces at once
_PIECE_BYTES = 8 << 20  # larger files are sent in pieces of this size
_NOT_S3 = "it may not be S3: check AWS_ENDPOINT_URL"
_MISSING = {"404", "NoSuchKey", "NoSuchBucket"}
_FORBIDDEN = {"401", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}


@dataclass(frozen=True)
class _RetryPolicy:
    """Attempts and timeouts of a request."""

    attempts: int
    read_timeout_s: float
    """Seconds that an answer may pause before the attempt has failed."""


_INTERACTIVE = _RetryPolicy(2, 10.0)  # for the first request, whose answer a user waits for
# The waits between attempts double, up to 20 s: this takes a minute if every attempt is refused at once.
_PERSISTENT = _RetryPolicy(16, 30.0)


class RemoteError(UserError):
    """The storage cannot be reached, or refuses a request; the message says which, and why."""


class MissingObjectError(FileNotFoundError):
    """An object does not exist; `filename` is its name."""


class S3Path:
    """A prefix or an object in a bucket; a forked process opens connections of its own.

    All methods that contact the storage raise RemoteError, and MissingObjectError if the object does not exist.
    """

    def __init__(self, name: str) -> None:
        bucket, _, key = name.removeprefix(SCHEME).partition("/")
        self._bucket, self._key = bucket, key.strip("/")
        if not self._bucket or not self._key:
            raise UserError(f"{name!r} must name a bucket and a folder in it: {SCHEME}bucket/prefix")

    def __str__(self) -> str:
        return f"{SCHEME}{self._bucket}/{self._key}"

    def __truediv__(self, name: str | PurePosixPath) -> "S3Path":
        return S3Path(f"{self}/{name}")

    @property
    def name(self) -> str:
        """The last component of the path."""
        return self._key.rpartition("/")[2]

    def check_bucket(self) -> None:
        """Check that the bucket exists and can be used.

        Raises:
            RemoteError: the bucket does not exist, is forbidden to these credentials, or nothing answers.
        """
        bucket = f"{SCHEME}{self._bucket}"
        try:
            with _explained(bucket):
                _client(os.getpid(), _INTERACTIVE).head_bucket(Bucket=self._bucket)
        except MissingObjectError as error:
            raise RemoteError(f"there is no bucket {bucket}; create it first, or name another") from error

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of each object below this prefix, by its name relative to the prefix."""
        found: dict[str, int] = {}
        with _explained(str(self)):
            pages = _client(os.getpid(), _PERSISTENT).get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=f"{self._key}/"):
                if not page.keys() & {"Contents", "IsTruncated", "KeyCount", "Name"}:  # a web page has none of them
                    raise RemoteError(f"{self} cannot be listed: the endpoint's answer is no list; {_NOT_S3}")
                names = {each["Key"].removeprefix(f"{self._key}/"): each["Size"] for each in page.get("Contents", ())}
                found |= names
        return found

    def size(self) -> int:
        """Return the size of an object in bytes."""
        with _explained(str(self)):
            answer = _client(os.getpid(), _PERSISTENT).head_object(Bucket=self._bucket, Key=self._key)
        return int(answer["ContentLength"])

    def read_bytes(self, *, most_bytes: int | None = None) -> bytes:
        """Return the bytes of an object.

        Raises:
            OSError: it has more than `most_bytes`.
        """
        if most_bytes is not None and self.size() > most_bytes:
            raise OSError(errno.EFBIG, f"it has more than {most_bytes:,} bytes")
        data = io.BytesIO()
        with _explained(str(self)):  # get_object would not retry after a connection breaks
            _client(os.getpid(), _PERSISTENT).download_fileobj(self._bucket, self._key, data)
        return data.getvalue()

    def write_bytes(self, data: bytes) -> None:
        """Write a small object, and read it back."""
        with _explained(str(self)):
            _client(os.getpid(), _PERSISTENT).put_object(Bucket=self._bucket, Key=self._key, Body=data)
        try:
            is_stored = self.read_bytes() == data
        except MissingObjectError:
            is_stored = False
        if not is_stored:
            raise RemoteError(f"{self} was sent, but the endpoint did not store it; {_NOT_S3}")

    def unlink(self) -> None:
        """Delete an object if it exists."""
        with _explained(str(self)):
            _client(os.getpid(), _PERSISTENT).delete_object(Bucket=self._bucket, Key=self._key)

    def upload(self, path: Path, *, progress: Callable[[int], object] | None = None) -> None:
        """Write a file as an object, in parallel pieces if it is large, and compare what was stored.

        Args:
            path: the file.
            progress: gets the sizes of the pieces that were sent.
        """
        from boto3.s3.transfer import TransferConfig

        pieces = TransferConfig(multipart_threshold=_PIECE_BYTES, multipart_chunksize=_PIECE_BYTES)
        with _explained(str(self)):
            client = _client(os.getpid(), _PERSISTENT)
            client.upload_file(str(path), self._bucket, self._key, Callback=progress, Config=pieces)
        if difference := self.difference(path):
            raise RemoteError(f"{self} was sent, but {difference}; {_NOT_S3}")

    def difference(self, path: Path) -> str | None:
        """Return how the stored object differs from a file, or None if it holds the same bytes.

        Its size and ETag are asked for. An ETag is usually an MD5 hash, but not with every storage or encryption: where
        it is another, the object is read back.
        """
        try:
            with _explained(str(self)):
                answer = _client(os.getpid(), _PERSISTENT).head_object(Bucket=self._bucket, Key=self._key)
        except MissingObjectError:
            return "it is not there"
        if answer.get("ContentLength") != path.stat().st_size:
            return f"it has {answer.get('ContentLength')} bytes, not {path.stat().st_size}"
        if answer.get("ETag", "").strip('"') == _etag(path) or self.read_bytes() == path.read_bytes():
            return None
        return "it holds other bytes"

    def download(self, path: Path) -> None:
        """Write an object to a file, which appears whole or not at all; create the folder of the file if necessary.

        Raises:
            OSError: the file cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_path(path)
        try:
            with _explained(str(self)):
                _client(os.getpid(), _PERSISTENT).download_file(self._bucket, self._key, str(partial))
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def _etag(path: Path) -> str:
    """Return the ETag that S3 gives to a file from `S3Path.upload`: its MD5 hash, or that of the pieces' hashes."""
    hashes = []
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            hashes.append(hashlib.md5(piece, usedforsecurity=False))
    if path.stat().st_size < _PIECE_BYTES:
        return hashes[0].hexdigest() if hashes else hashlib.md5(usedforsecurity=False).hexdigest()
    joined = b"".join(each.digest() for each in hashes)
    return f"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(hashes)}"


def is_remote(name: str) -> bool:
    """Return True if `name` names a folder in S3.

    Raises:
        UserError: it names a folder in another storage.
    """
    if "://" in name and not name.startswith(SCHEME):
        raise UserError(
            f"{name}: only {SCHEME}bucket/prefix is supported (AWS_ENDPOINT_URL: other storage with S3's protocol)"
        )
    return name.startswith(SCHEME)


def folder_at(name: str) -> Path | S3Path:
    """Return the folder that a user named, on a disk or in S3; in S3, check its bucket.

    Raises:
        UserError: it is in a storage other than S3, or the bucket does not exist or cannot be used.
    """
    if not is_remote(name):
        return Path(name)
    folder = S3Path(name)
    folder.check_bucket()
    return folder


@functools.cache
def _client(_pid: int, policy: _RetryPolicy) -> Any:
    """Return the client of this process, since a forked process must not use its parent's connections."""
    import boto3
    from botocore.config import Config

    config = Config(
        retries={"mode": "standard", "total_max_attempts": policy.attempts}, connect_timeout=_CONNECT_TIMEOUT_S,
        read_timeout=policy.read_timeout_s, max_pool_connections=_CONNECTIONS,
    )  # fmt: skip
    return boto3.session.Session().client("s3", config=config, endpoint_url=os.environ.get("S3_ENDPOINT_URL") or None)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn exceptions of boto3 into a RemoteError or MissingObjectError of one line."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

    try:
        yield
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise RemoteError(f"{name}: no credentials; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and its secret") from error
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code"))
        if code in _MISSING:
            raise MissingObjectError(errno.ENOENT, "no such object", name) from error
        meaning = "is forbidden to these credentials" if code in _FORBIDDEN else "cannot be used"
        raise RemoteError(f"{name} {meaning} ({code}: {one_line(error)})") from error
    except KeyError as error:  # boto3 looks up what an answer of S3 always has
        raise RemoteError(f"{name} cannot be used: the endpoint's answer has no {error}; {_NOT_S3}") from error
    except RemoteError:
        raise
    except (Boto3Error, BotoCoreError, ValueError) as error:  # botocore raises ValueError for malformed endpoints
        raise RemoteError(f"{name} cannot be reached: {one_line(error)}") from error
