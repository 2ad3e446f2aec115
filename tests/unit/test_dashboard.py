"""TensorBoard's own page, in a headless Chromium, shows a run's charts, texts and hyperparameters."""

import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import pytest

from pipeline.sinks import TensorBoard
from tests.browser import Browser, find_chromium
from tests.conftest import free_port
from tests.unit.test_monitor import config_in

pytestmark = pytest.mark.skipif(
    find_chromium() is None, reason="no Chromium here to look at the page with; on Debian: apt-get install chromium"
)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A TensorBoard server over one run's folder."""
    folder, port = tmp_path_factory.mktemp("page"), free_port()
    sink = TensorBoard(config_in(folder), resumed_step=0)
    for step in range(1, 9):
        sink.write(step, dict.fromkeys(("loss/total", "loss/head_1", "loss/head_2"), 1.0 / step))
        sink.write(step, {f"val/loss_head_{head}": 2.0 / step for head in (1, 2)})
    sink.write_text(8, "previews/prompt_1", "| position | token |\n| --- | --- |\n| 1 | **`foreseen`** |")
    sink.close()
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--host", "127.0.0.1", "--port"]
    with subprocess.Popen([*command, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            wait_for_run(f"http://127.0.0.1:{port}", server)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def wait_for_run(address: str, server: subprocess.Popen[bytes]) -> None:
    """Wait until the server has read the event files."""
    deadline = time.monotonic() + 120
    while True:
        assert server.poll() is None
        assert time.monotonic() < deadline
        try:
            with urllib.request.urlopen(f"{address}/data/runs") as answer:
                if b"tensorboard" in answer.read():
                    return
        except OSError:
            pass
        time.sleep(0.2)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def test_the_page_shows_the_charts(address: str, browser: Browser) -> None:
    browser.open(f"{address}/#timeseries")
    browser.wait_for("loss /total", "loss /head_1", "loss /head_2", "val 2 cards")
    browser.open(f"{address}/#custom_scalars")
    browser.wait_for("loss per head, nats per token")
    browser.open(f"{address}/#text")
    browser.wait_for("previews/prompt_1", "foreseen", "n_future_tokens: 2")
    browser.open(f"{address}/#hparams")
    browser.wait_for("model.n_future_tokens", "optim.lr")
