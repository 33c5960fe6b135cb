"""An OpenAI-compatible server of canned behaviors, and the images and settings that tests ask it with."""

import json
import re
import threading
import time
from collections import defaultdict
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from kaleido_jax.config.schema import AnnotateEndpoint
from kaleido_jax.data.sources.base import Example

GOOD = (
    "A small brown terrier lies on the lap of a person in blue jeans, its head turned towards an open laptop. The dog "
    "has wiry fur and dark eyes, and it seems to be half asleep. Soft daylight from a window on the left fills the "
    "living room behind them, where a grey sofa and a shelf with books are out of focus. The logo on the lid of the "
    "laptop glows white."
)
HANG_S = 60  # longer than the time-out of the tests that hang; the server's end is not kept by it


def reply(text, finish="stop", **message):
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "tiny",
        "choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text} | message}],
        "usage": {"prompt_tokens": 300, "completion_tokens": 100, "total_tokens": 400},
    }


class Server:
    """Answers the k-th request about a caption (found in the prompt as "image <name>") by the k-th of its behaviors.

    A behavior is a text, a dict (the JSON answer), a status or (status, headers), or the name of a method below. The
    last one is repeated. In place of a list may stand a function of the request's body that gives the behavior.
    """

    def __init__(self, behaviors, default=GOOD):
        self.behaviors, self.default = behaviors, default
        self.requests = defaultdict(list)  # caption -> bodies, in order
        self.headers, self.times = [], []
        self.under_way = self.most_under_way = 0
        self.lock = threading.Lock()
        self.stopping = threading.Event()

    def respond(self, handler):
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        name = re.search(r"image (\w+)", body["messages"][0]["content"][1]["text"])[1]
        with self.lock:
            self.times.append(time.monotonic())
            self.headers.append(handler.headers)
            self.requests[name].append(body)
            count = len(self.requests[name])
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            default = self.default if callable(self.default) else [self.default]
            script = self.behaviors.get(name, default)
            self.act(handler, script(body) if callable(script) else script[min(count, len(script)) - 1])
        finally:
            with self.lock:
                self.under_way -= 1

    def act(self, handler, behavior):
        if isinstance(behavior, str) and hasattr(self, behavior):
            getattr(self, behavior)(handler)
        elif isinstance(behavior, int):
            self.send(handler, {"error": {"message": "as asked"}}, behavior)
        elif isinstance(behavior, tuple):
            self.send(handler, {"error": {"message": "as asked"}}, *behavior)
        else:
            self.send(handler, behavior if isinstance(behavior, dict | list) else reply(behavior))

    def send(self, handler, value, status=200, headers=()):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        for name, content in dict(headers).items():
            handler.send_header(name, content)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def hang(self, handler):
        self.stopping.wait(HANG_S)

    def drip(self, handler):
        handler.send_response(200)
        handler.end_headers()
        for _ in range(HANG_S * 50):  # each read is in time, the whole never comes
            handler.wfile.write(b" ")
            if self.stopping.wait(0.02):
                return

    def half_json(self, handler):
        self.send(handler, json.dumps(reply(GOOD)).encode()[:150])

    def torn(self, handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "5000")
        handler.end_headers()
        handler.wfile.write(b'{"choices": [')

    def drop(self, handler):
        handler.close_connection = True

    def html(self, handler):
        self.send(handler, b"<html>Bad gateway</html>")

    def nested(self, handler):
        self.send(handler, b"[" * 100_000)

    def ten_megabytes(self, handler):
        self.send(handler, reply("word " * 2_000_000))


@contextmanager
def serving(behaviors=None, default=GOOD):
    """A Server with its `base_url`, in threads of this process."""
    server = Server(behaviors or {}, default)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            try:
                server.respond(self)
            except (BrokenPipeError, ConnectionResetError):  # the client had enough
                self.close_connection = True

        def log_message(self, *args):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.base_url = f"http://127.0.0.1:{http.server_port}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stopping.set()
        http.shutdown()
        http.server_close()
        thread.join()


def settings(server, **changes):
    quick = {"base_url": server.base_url, "model": "tiny", "timeout_s": 60.0, "retries": 3, "concurrency": 8}
    return AnnotateEndpoint(**(quick | changes))


def example(name, side=16):
    image = np.full((side, side, 3), (200, 120, 40), np.uint8)
    return Example(id=f"test/{name}", image=image, caption=f"image {name}")
