"""A studio on a free port, in a thread, and a small HTTP client with a session."""

import http.client
import json
import threading
import time

import pytest
import uvicorn

from kaleido_jax.studio import serve


class Client:
    """Requests to the studio of one session; answers are (status, value)."""

    def __init__(self, port):
        self.port, self.cookie = port, ""

    def ask(self, method, path, body=None, headers=()):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        body = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        named = {"Content-Type": kind, "Cookie": self.cookie} | dict(headers)
        connection.request(method, path, body=body, headers=named)
        answer = connection.getresponse()
        content = answer.read()
        if cookie := answer.getheader("Set-Cookie"):
            self.cookie = cookie.partition(";")[0]
        self.headers = dict(answer.getheaders())
        connection.close()
        return answer.status, json.loads(content) if self.headers["content-type"] == "application/json" else content

    def news(self, job):
        """All events of a job, as (kind, data), up to the final one."""
        status, content = self.ask("GET", f"/api/jobs/{job}/events")
        assert status == 200, content
        blocks = [block.split("\n") for block in content.decode().split("\n\n") if block]
        return [(kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for kind, data in blocks]

    def result(self, name, body):
        """(kind, data) of the final event of a request, or ("refused", message)."""
        status, value = self.ask("POST", f"/api/{name}", body)
        return self.news(value["job"])[-1] if status == 202 else ("refused", value)


@pytest.fixture(scope="module")
def start_studio():
    """Starts the studio of an engine -> a function that makes clients of it."""
    servers = []

    def start(engine):
        listening = serve.listen(0)
        server = uvicorn.Server(serve.server_config(engine))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        servers.append((server, thread))
        while not server.started:
            time.sleep(0.01)
        return lambda: Client(listening.getsockname()[1])

    yield start
    for server, thread in servers:
        server.should_exit = True
        thread.join()
