"""Log lines around a long call whose progress cannot be seen from outside."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from kaleido_jax.runtime.progress import clock

log = logging.getLogger(__name__)

EVERY_SEC = 30


@contextmanager
def stage(title: str) -> Iterator[None]:
    """Says that it began, every half minute that it is still running, and how long it took if that was long."""
    start, finished = time.monotonic(), threading.Event()

    def tick() -> None:
        while not finished.wait(EVERY_SEC):
            log.info("%s: %s so far", title, clock(time.monotonic() - start))

    log.info("%s ...", title)
    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    try:
        yield
    finally:
        finished.set()
        ticker.join()
    log.info("%s took %s", title, clock(time.monotonic() - start))
