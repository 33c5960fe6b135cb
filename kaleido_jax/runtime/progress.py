"""Progress of a long job: a bar on a terminal, otherwise a log line every ten seconds, with rate and ETA."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

from kaleido_jax.runtime.distributed import is_main

log = logging.getLogger(__name__)

LOG_EVERY_SEC = 10


@contextmanager
def progress(title: str, total: int, unit: str, wanted: bool = True) -> Iterator[Callable[[int], None]]:
    """Yields a function to call with the number of units just finished.

    Args:
      title: of the bar or line.
      total: number of units.
      unit: what is counted, e.g. "img".
      wanted: False shows nothing, as do other processes than the main one.
    """
    if not (wanted and total and is_main()):
        yield lambda done: None
    elif sys.stderr.isatty():
        with tqdm(desc=title, total=total, unit=unit) as bar:
            yield bar.update
    else:
        yield _log_lines(title, total, unit)


def _log_lines(title: str, total: int, unit: str) -> Callable[[int], None]:
    start = last = time.monotonic()
    count = 0

    def advance(done: int) -> None:
        nonlocal last, count
        count += done
        now = time.monotonic()
        if now - last < LOG_EVERY_SEC and count < total:
            return
        last, rate = now, count / max(now - start, 1e-9)
        log.info("%s: %d of %d, %.1f %s/s, ETA %s", title, count, total, rate, unit, clock((total - count) / rate))

    return advance


def clock(seconds: float) -> str:
    """Minutes and seconds, e.g. "7:05"."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
