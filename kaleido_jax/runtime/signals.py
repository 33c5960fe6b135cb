"""Stop signals: SIGTERM and Ctrl-C ask for a clean end."""

import os
import signal
from types import FrameType

from kaleido_jax.errors import Terminated


def raise_on_sigterm() -> None:
    """SIGTERM raises Terminated, as Ctrl-C raises KeyboardInterrupt, so that what is open is closed."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)


class StopSignal:
    """While entered, SIGTERM and Ctrl-C set `asked` and say so; a second Ctrl-C ends the program at once."""

    asked = False

    def __init__(self, what: str = "after this step, with a checkpoint") -> None:
        """`what` completes "stopping ..."."""
        self._what = what

    def __enter__(self) -> "StopSignal":
        self._terminated = False
        self._before = {s: signal.signal(s, self._ask) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.asked:  # os.write, since a logger may be in use by what the signal interrupts
            os.write(2, f"stopping {self._what}; press Ctrl-C again to stop at once\n".encode())
        self.asked, self._terminated = True, self._terminated or number == signal.SIGTERM

    def as_error(self) -> KeyboardInterrupt:
        """What to raise after the clean end."""
        return Terminated() if self._terminated else KeyboardInterrupt()

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
