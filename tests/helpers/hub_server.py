"""A server with the part of Hugging Face's Hub that reading a public data set needs, for the real client."""

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "some/stack"


class _Handler(BaseHTTPRequestHandler):
    root: Path
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer with the description of the data set, a listing, or a file, perhaps a range of it."""
        path = unquote(urlsplit(self.path).path)
        resolved = f"/datasets/{NAME}/resolve/"
        if path.startswith(resolved):
            self._send_file(self.root / path.removeprefix(resolved).partition("/")[2])
        elif path.startswith(f"/api/datasets/{NAME}/tree/"):
            self._send_json([self._entry(file) for file in self._files()])
        elif path.startswith(f"/api/datasets/{NAME}"):
            siblings = [{"rfilename": self._name(file)} for file in self._files()]
            self._send_json({"id": NAME, "sha": COMMIT, "private": False, "tags": [], "siblings": siblings})
        else:
            self._send_missing()

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """Answer with the entries of the paths that are asked for."""
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self._send_json([self._entry(file) for file in self._files() if self._name(file) in unquote(asked)])

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002  named by the base class
        """Print nothing."""

    def _files(self) -> list[Path]:
        return sorted(path for path in self.root.rglob("*") if path.is_file())

    def _name(self, file: Path) -> str:
        return file.relative_to(self.root).as_posix()

    def _entry(self, file: Path) -> dict[str, object]:
        return {"type": "file", "path": self._name(file), "size": file.stat().st_size, "oid": "0" * 40}

    def _send_file(self, file: Path) -> None:
        if not file.is_file():
            self._send_missing()
            return
        data = file.read_bytes()
        start, stop = 0, len(data)
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(len(data), int(last) + 1) if last else len(data)
        headers = {"ETag": f'"{len(data)}-{file.name}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if wanted:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        self._send(data[start:stop], status=206 if wanted else 200, headers=headers)

    def _send_json(self, value: object) -> None:
        self._send(json.dumps(value).encode(), status=200, headers={"Content-Type": "application/json"})

    def _send_missing(self) -> None:
        self._send(b"{}", status=404, headers={"X-Error-Code": "EntryNotFound"})

    def _send(self, data: bytes, *, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@contextlib.contextmanager
def hub_of(folder: Path) -> Iterator[str]:
    """Serve a folder as the data set `NAME`; yield the address for HF_ENDPOINT."""
    handler = type("Handler", (_Handler,), {"root": folder})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
