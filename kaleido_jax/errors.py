"""Errors that a user can mend: one line of what was found, what was expected and what to do."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input (config, file, flag); `main` prints it as one line and exits with code 2."""


def user_error(found: str, expected: str, do: str) -> UserError:
    """A UserError in the house's form: "<found>; expected <expected>; <do>"."""
    return UserError(f"{found}; expected {expected}; {do}")


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word most like a misspelled one, or ""."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)), "")
