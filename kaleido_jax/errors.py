"""The one error a user can mend: its text is a single line of found, expected and what to do."""


class UserError(Exception):
    """Bad input (config, file, flag); `main` prints it as one line and exits with code 2."""


def user_error(found: str, expected: str, do: str) -> UserError:
    """A UserError in the house's form: "<found>; expected <expected>; <do>"."""
    return UserError(f"{found}; expected {expected}; {do}")
