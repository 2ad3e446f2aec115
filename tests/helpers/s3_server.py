"""An S3 server on this machine (moto in its own process), which can corrupt answers, lose what it is sent, and records
its requests.

    python -m tests.helpers.s3_server [SECONDS]      prints its address; SECONDS delays every answer

Objects are kept in memory until the process ends.
"""

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlencode

from tests.conftest import REPOSITORY

_CORRUPT, _LOSE, _SENT = "/-/corrupt", "/-/lose", "/-/sent"
NOWHERE = "http://127.0.0.1:9"  # an address at which no server listens


class S3Server:
    """A test's view of the server: one bucket, and ways to corrupt and list what is sent from it."""

    def __init__(self, address: str, *, bucket: str) -> None:
        self._address, self.bucket = address, bucket

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that direct boto3 to this server."""
        return {
            "AWS_ENDPOINT_URL": self._address,
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/nonexistent",
            "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",  # our own hashes must find corrupt answers
        }

    def client(self) -> Any:
        """Return a boto3 client of the server."""
        import boto3

        return boto3.client("s3")

    def objects(self) -> dict[str, bytes]:
        """Return the content of every object in the bucket, by key."""
        client, found = self.client(), self.modified()
        return {key: client.get_object(Bucket=self.bucket, Key=key)["Body"].read() for key in found}

    def modified(self) -> dict[str, Any]:
        """Return the time at which each object was written, in whole seconds, by key."""
        found = self.client().list_objects_v2(Bucket=self.bucket).get("Contents", [])
        return {item["Key"]: item["LastModified"] for item in found}

    def corrupt(self, key: str, *, times: int) -> None:
        """Flip a bit in each of the next `times` answers that hold this object."""
        self._ask(f"{_CORRUPT}?{urlencode({'path': f'/{self.bucket}/{key}', 'times': times})}")

    def lose(self, key: str) -> None:
        """Answer the next request that would write this object with a web page, and store nothing."""
        self._ask(f"{_LOSE}?{urlencode({'path': f'/{self.bucket}/{key}'})}")

    def take_sent(self) -> list[str]:
        """Return the keys of the objects that were requested since the last call."""
        paths = json.loads(self._ask(_SENT))
        return [path.removeprefix(f"/{self.bucket}/") for path in paths if path.startswith(f"/{self.bucket}/")]

    def _ask(self, path: str) -> bytes:
        with urllib.request.urlopen(f"{self._address}{path}") as answer:
            body: bytes = answer.read()
        return body


@contextmanager
def s3_process() -> Iterator[str]:
    """Start a server; yield its address."""
    command = [sys.executable, "-m", "tests.helpers.s3_server"]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


class _Application:
    """A WSGI application that passes requests on to moto's."""

    def __init__(self, application: Any, *, delay_s: float) -> None:
        self._application, self._delay_s = application, delay_s
        self._corrupted: dict[str, int] = {}
        self._lost: set[str] = set()
        self._sent: list[str] = []

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path in (_CORRUPT, _LOSE, _SENT):
            start_response("200 OK", [])
            return [self._control(path, parse_qs(environ["QUERY_STRING"]))]
        time.sleep(self._delay_s)
        if path in self._lost and environ["REQUEST_METHOD"] in ("PUT", "POST"):
            self._lost.remove(path)
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("200 OK", [("Content-Type", "text/html")])
            return [b"<html>Sign in</html>"]
        body: Iterable[bytes] = self._application(environ, start_response)
        if environ["REQUEST_METHOD"] != "GET":
            return body
        self._sent.append(path)
        if self._corrupted.get(path, 0) == 0:
            return body
        self._corrupted[path] -= 1
        return [data[:-1] + bytes([data[-1] ^ 0x10]) for data in body if data]

    def _control(self, path: str, query: dict[str, list[str]]) -> bytes:
        if path == _CORRUPT:
            self._corrupted[query["path"][0]] = int(query["times"][0])
            return b""
        if path == _LOSE:
            self._lost.add(query["path"][0])
            return b""
        sent, self._sent = self._sent, []
        return json.dumps(sent).encode()


def serve(*, delay_s: float) -> None:
    """Serve until killed."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Silent(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"  # connections are kept

        def log(self, *_: Any) -> None: ...

    application = _Application(DomainDispatcherApplication(create_backend_app), delay_s=delay_s)
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Silent)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    serve(delay_s=float(sys.argv[1]) if len(sys.argv) > 1 else 0.0)
