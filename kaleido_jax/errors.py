"""Errors that a user can fix: one line with what was found, what was expected and what to do."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input (config, file, flag); `main` prints it as one line and exits with code 2."""


class MissingProcess(UserError):
    """Another process of the run has not come, or is gone; the input may be right. `main` exits with code 4."""


def user_error(found: str, expected: str, do: str, kind: type[UserError] = UserError) -> UserError:
    """A UserError of three parts: "<found>; expected <expected>; <do>", in one line, whatever names it quotes."""
    return kind(" ".join(f"{found}; expected {expected}; {do}".splitlines()))


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word closest to a misspelled one, or ""."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)), "")


class Aborted(KeyboardInterrupt):
    """Ctrl-C a second time: the program ends without the checkpoint that the first one asked for."""


class Terminated(KeyboardInterrupt):
    """Stopped by SIGTERM: a scheduler wants the machine back, and the run may go on elsewhere."""
