"""Devices of this machine: whether those that the user asks for are there, found out before any work."""

import os

from kaleido_jax.errors import user_error


def check_backend() -> None:
    """Starts the backends of JAX_PLATFORMS where it is set; without it JAX itself takes the best that there is.

    Raises:
      UserError: it names a platform that this machine or this JAX has not.
    """
    asked = os.environ.get("JAX_PLATFORMS")
    if not asked:
        return
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX has an assertion without text where no backend is left
        jax.config.update("jax_platforms", None)
        there = ", ".join(sorted({"cpu", jax.default_backend()}))
        raise user_error(
            f"JAX_PLATFORMS={asked}, of which there is no device here",
            f"one of {there}",
            "correct it, or unset it to take the best that there is",
        ) from error
