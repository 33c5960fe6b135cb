"""Stop signals: SIGTERM and Ctrl-C ask for a clean end, and are acknowledged at once, whatever the program does.

Python runs its handlers between two of its own instructions, so not while a library compiles or waits for a device. A
thread that reads signal.set_wakeup_fd hears of signals at any time.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType
from typing import NoReturn

from kaleido_jax.errors import Aborted, Terminated

STOPPING = "stopping {}; press Ctrl-C again to stop at once\n"
LATER = b"stopping as soon as what runs now lets go; press Ctrl-C again to stop at once\n"
PATIENCE_SEC = 1.0  # before a program that has not ended says that it will
LINE_SEC = 30.0  # for one line to a terminal: milliseconds, unless the machine stands still or nobody reads
GRACE_SEC = 3.0  # for the handlers and finally clauses of a program that shall stop at once


def raise_on_sigterm() -> None:
    """SIGTERM raises Terminated, as Ctrl-C raises KeyboardInterrupt, so that what is open is closed.

    Where that takes more than a second, a line says so, and a second Ctrl-C ends the program with exit code 130.
    """

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    _Ear(_say_later).__enter__()


@contextmanager
def kept_from_children(*numbers: signal.Signals) -> Iterator[None]:
    """Processes started in here never get these signals, and this thread gets them afterwards.

    A terminal sends Ctrl-C to all processes of a program, and schedulers send SIGTERM to all of a job. A worker that
    ends while it starts, before it can ignore them, would leave its parent without what it should have made. A process
    without SIGTERM is not ended by Process.terminate().
    """
    resource_tracker.ensure_running()  # multiprocessing starts it, which sets the mask of this thread back
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_sigterm() -> None:
    """For a program that is ending with a code of its own: SIGTERM would replace it, also in the interpreter's end."""
    if _in_main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def end_at_once(code: int) -> NoReturn:
    """Ends the process with what is written so far, and without the interpreter's end.

    For a program with threads inside a library, which that would abort, or for which others must not wait.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _say_later() -> None:
    time.sleep(PATIENCE_SEC)
    os.write(2, LATER)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


# A forked process would write the signals that it gets into the pipe of its parent, which took them for its own.
os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))


class _Ear:
    """While entered, a thread that hears SIGTERM and SIGINT, calls `first` at the first and ends at a second SIGINT.

    Only in the main thread, where Python allows it; elsewhere nothing is heard.
    """

    def __init__(self, first: Callable[[], None]) -> None:
        # In a thread of its own, since a second press may come while it waits.
        self._first = threading.Thread(target=first, name="first signal", daemon=True)
        self._thread, self._left = None, threading.Event()

    def __enter__(self) -> "_Ear":
        if _in_main_thread():
            self._read_end, self._write_end = os.pipe()
            os.set_blocking(self._write_end, False)
            self._before = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
            self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
            self._thread.start()
        return self

    def _listen(self) -> None:
        heard = False
        while number := os.read(self._read_end, 1):
            if number[0] not in (signal.SIGTERM, signal.SIGINT):
                continue
            if heard and number[0] == signal.SIGINT:
                # The handler has raised Aborted; while the program is inside a library, nobody hears of it.
                if self._left.wait(GRACE_SEC):
                    return
                os._exit(130)  # checkpoints are renamed when they are whole, so the last one stays
            if not heard:
                self._first.start()
            heard = True

    def __exit__(self, *error: object) -> None:
        if self._thread is not None:
            signal.set_wakeup_fd(self._before)
            self._left.set()
            os.close(self._write_end)
            self._thread.join()
            os.close(self._read_end)
            if self._first.ident is not None:  # started: a program that ends at once shall have said so before
                self._first.join(LINE_SEC)


class StopSignal:
    """While entered, SIGTERM and Ctrl-C set `asked` and say so; a second Ctrl-C ends the program at once.

    SIGTERM sets `terminated` too. In another thread than the main one, where Python allows no handlers, signals stay as
    they are.
    """

    asked = terminated = False

    def __init__(self, what: str = "after this step, with a checkpoint") -> None:
        """`what` completes "stopping ..."."""
        self._what = what

    def __enter__(self) -> "StopSignal":
        numbers = (signal.SIGTERM, signal.SIGINT) if _in_main_thread() else ()
        self._before = {number: signal.signal(number, self._ask) for number in numbers}
        # os.write, since a logger may be in use by what the signal interrupts
        self._ear = _Ear(lambda: os.write(2, STOPPING.format(self._what).encode())).__enter__()
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise Aborted
        self.terminated = self.terminated or number == signal.SIGTERM
        self.asked = True

    def as_error(self) -> KeyboardInterrupt:
        """What to raise after the clean end."""
        return Terminated() if self.terminated else KeyboardInterrupt()

    def __exit__(self, *error: object) -> None:
        self._ear.__exit__()
        for number, handler in self._before.items():
            signal.signal(number, handler)
