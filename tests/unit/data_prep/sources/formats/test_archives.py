"""Archives against the libraries' own decompression, in pieces of any size."""

import gzip
import io
import random
from collections.abc import Callable

import pytest
import zstandard

from data_prep.sources.formats.archives import GZ, ZST, DamagedError, compression_of, decompressed

COMPRESS: dict[str, Callable[[bytes], bytes]] = {GZ: gzip.compress, ZST: zstandard.compress}


@pytest.mark.parametrize("compression", [GZ, ZST])
@pytest.mark.parametrize("sizes", [(0,), (1, 0, 1), (100, 3_000_000, 5), (1 << 15, 1 << 16)])
def test_members_and_frames_are_joined(compression: str, sizes: tuple[int, ...]) -> None:
    draw = random.Random(0)
    contents = [draw.randbytes(size // 2) + bytes(size - size // 2) for size in sizes]
    data = b"".join(COMPRESS[compression](content) for content in contents)
    assert compression_of(data) == compression
    stream = decompressed(io.BytesIO(data), compression)
    whole = b"".join(contents)
    assert stream.read(7) == whole[:7]
    assert stream.read() == whole[7:]
    lines = decompressed(io.BytesIO(data), compression).readlines()
    assert lines == io.BytesIO(whole).readlines()


@pytest.mark.parametrize("compression", [GZ, ZST])
def test_damage_ends_the_stream_after_what_is_whole(compression: str) -> None:
    data = COMPRESS[compression](b"a line\n" * 100_000) + COMPRESS[compression](b"another\n")
    for damaged, at_least in ((data[:-1], 100_000), (data + b"no archive", 100_001), (b"no archive", 0), (b"", 0)):
        stream = decompressed(io.BytesIO(damaged), compression)
        lines: list[bytes] = []
        with pytest.raises(DamagedError) as raised:
            lines.extend(iter(stream.readline, b""))
        assert len(lines) >= at_least
        assert 0 <= raised.value.position <= len(damaged)
        assert f"byte {raised.value.position}" in str(raised.value)
