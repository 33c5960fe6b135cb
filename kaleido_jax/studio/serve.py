"""The studio's server on a port of this machine."""

import errno
import socket

import uvicorn

from kaleido_jax.errors import user_error
from kaleido_jax.studio.engine import Engine
from kaleido_jax.studio.server import create_app

BACKLOG = 128  # connections that wait to be accepted


def listen(port: int) -> socket.socket:
    """A socket that listens on 127.0.0.1, and nowhere else; who connects before the server runs waits for it.

    Raises:
      UserError: another program has the port.
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", port))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        raise user_error(f"port {port}, which is taken", "a free one", "give --port=0, or another number") from error
    return listening


def serve(engine: Engine, listening: socket.socket) -> None:
    """Answers until Ctrl-C or SIGTERM; open event streams are cut off."""
    uvicorn.Server(server_config(engine)).run(sockets=[listening])


def server_config(engine: Engine) -> uvicorn.Config:
    """The server of an engine's studio."""
    return uvicorn.Config(
        create_app(engine),
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=1,
        h11_max_incomplete_event_size=65_536,
        server_header=False,
    )
