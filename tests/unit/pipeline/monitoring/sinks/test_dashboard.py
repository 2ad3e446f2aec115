"""TensorBoard's own page, opened in a headless Chromium, shows a run's charts, texts and hyperparameters."""

import json
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch

from pipeline.monitoring.sinks import event_files
from pipeline.monitoring.sinks.dashboard import LOSSES
from pipeline.monitoring.sinks.tensorboard import TensorBoard
from tests.conftest import free_port
from tests.helpers.browser import Browser, find_chromium
from tests.helpers.monitored import config_in

pytestmark = pytest.mark.skipif(
    find_chromium() is None, reason="Chromium is not installed; on Debian: apt-get install chromium"
)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the address of a TensorBoard server for a run that was resumed after step 4 where the clock is behind."""
    folder, port = tmp_path_factory.mktemp("page"), free_port()
    for start, resumed_step in enumerate((0, 4)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(event_files, "time", SimpleNamespace(time=lambda now_s=2e9 - 1e6 * start: now_s))
            sink = TensorBoard(config_in(folder), resumed_step=resumed_step)
            for step in range(resumed_step + 1, 9):
                sink.write(step, dict.fromkeys(("loss/total", "loss/head_1", "loss/head_2"), start + 1.0 / step))
                sink.write(step, {f"val/loss_head_{head}": 2.0 / step for head in (1, 2)})
    sink.write_histogram(8, "grad_norms_log10/head_1", torch.linspace(-6, -2, 40))
    sink.write_text(8, "previews/prompt_1", "| position | token |\n| --- | --- |\n| 1 | **`foreseen`** |")
    sink.close()
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--host", "127.0.0.1", "--port"]
    with subprocess.Popen([*command, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            assert has_run(f"http://127.0.0.1:{port}", server)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def has_run(address: str, server: subprocess.Popen[bytes], *, timeout_s: float = 300) -> bool:
    """Wait for the server to read the event files; return whether it did in time."""
    deadline = time.monotonic() + timeout_s
    while server.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), urllib.request.urlopen(f"{address}/data/runs") as answer:
            if b"tensorboard" in answer.read():
                return True
        time.sleep(0.2)
    return False


def test_the_server_shows_each_step_once(address: str) -> None:
    """The server's own reader of event files is another program than Python's readers."""
    query = urllib.parse.urlencode({"run": "try/tensorboard", "tag": "loss/head_1"})
    with urllib.request.urlopen(f"{address}/data/plugin/scalars/scalars?{query}") as answer:
        points = json.load(answer)
    assert [step for _, step, _ in points] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [value for _, _, value in points] == pytest.approx([(step > 4) + 1.0 / step for step in range(1, 9)])


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile"), height=2400) as browser:  # cards outside the window stay empty
        yield browser


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("#timeseries", ["loss /total", "loss /head_1", "loss /head_2", "val 2 cards"]),
        (LOSSES.partition("6006/")[2], ["Tags matching filter 5 cards", "loss /head_1"]),
        ("#custom_scalars", ["loss per head, nats per token", "training", "validation", "Matches (2)"]),
        ("#text", ["previews/prompt_1", "foreseen", "n_future_tokens: 2"]),
        ("#hparams", ["model.n_future_tokens", "optim.lr"]),
        ("#histograms", ["grad_norms_log10/head_1"]),
    ],
)
def test_the_page_shows_the_charts(address: str, browser: Browser, page: str, expected: list[str]) -> None:
    browser.open(f"{address}/{page}")
    shown = browser.text_with(*expected)
    for text in expected:
        assert text in shown
