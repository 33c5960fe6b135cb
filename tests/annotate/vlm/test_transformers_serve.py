"""The way to a real OpenAI-compatible server: `transformers serve` with a tiny random model."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openai", reason="openai is not installed")
pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("fastapi", reason="fastapi is not installed: pip install 'transformers[serving]'")
pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install 'transformers[serving]'")

from kaleido_jax.annotate.annotator import Failure
from kaleido_jax.annotate.vlm.captioner import Captioner
from kaleido_jax.annotate.vlm.endpoint import Endpoint
from kaleido_jax.annotate.vlm.grounder import Grounder
from kaleido_jax.config.schema import AnnotateEndpoint
from kaleido_jax.data.sources.base import Example
from kaleido_jax.latents.types import Latents

HERE = Path(__file__).parent
START_S = 180  # on a busy machine; importing torch is most of it


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """(URL, name of the model) of a running server."""
    folder = tmp_path_factory.mktemp("served") / "llava"
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    made = [sys.executable, HERE / "tiny_vlm.py", "llava", folder]
    subprocess.run(made, check=True, env=offline, capture_output=True, timeout=START_S)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "from transformers.cli.transformers import main; main()"
    serve = [sys.executable, "-c", code, "serve", folder, "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    with open(folder.parent / "log", "wb") as log:
        process = subprocess.Popen(serve, env=offline, stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait(f"http://127.0.0.1:{port}/health", process, folder.parent / "log")
        yield f"http://127.0.0.1:{port}/v1", str(folder)
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait(url, process, log):
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    raise AssertionError(f"no server after {START_S} s\n{log.read_text()}")


def endpoint(server, **changes):
    url, name = server
    settings = {"base_url": url, "model": name, "timeout_s": 60.0, "retries": 1, "concurrency": 2} | changes
    return Endpoint(AnnotateEndpoint(**settings), max_tokens=12)


@pytest.mark.slow
def test_every_image_ends_in_a_result_or_a_reason(server, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    rng = np.random.default_rng(0)
    examples = [
        Example(id=f"e{i}", image=rng.integers(0, 256, (32, 32, 3), dtype=np.uint8), caption=f"thing {i}")
        for i in range(3)
    ]
    examples[1] = Example(id="bad", image=np.zeros((2, 3, 3), np.uint8), caption="thing")
    for kind in (Captioner, Grounder):
        model = endpoint(server)
        results = kind(model, image_size=28)(examples, [Latents()] * 3)
        # Random weights write noise, which is unusable; but it came from the model.
        for result in results:
            assert isinstance(result, Failure) and result.segment == kind.segments[0]
        assert "square RGB" in results[1].reason
        wanted = "cut off" if kind is Captioner else "no box in"
        assert all(wanted in result.reason and "2 tries" in result.reason for result in results[::2])
        # Two images, asked twice each: what the server counted has arrived.
        assert model.usage.requests == 4
        assert model.usage.completion_tokens == 4 * 12
        assert model.usage.prompt_tokens > 4 * 100  # a prompt of one token a byte


@pytest.mark.slow
def test_a_failure_has_the_servers_own_words(server, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    annotator = Captioner(endpoint(server, model="another"), image_size=28)
    example = Example(id="e", image=np.zeros((28, 28, 3), np.uint8), caption="thing")
    [result] = annotator([example], [Latents()])
    # This server says 400, not 404, so it might be about the image.
    assert re.fullmatch(r"status 400: .*'another'.* \(1 try\)", result.reason), result.reason
