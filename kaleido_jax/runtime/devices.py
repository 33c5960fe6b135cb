"""Devices of this machine: checks before any work that those the user asks for exist."""

import os

from kaleido_jax.errors import user_error


def check_backend() -> None:
    """Starts the backends of JAX_PLATFORMS if it is set; otherwise JAX itself chooses the best available one.

    Raises:
      UserError: it names a platform that this machine or this JAX does not have.
    """
    asked = os.environ.get("JAX_PLATFORMS")
    if not asked:
        return
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX fails with a bare assertion if no backend is left
        jax.config.update("jax_platforms", None)
        there = ", ".join(sorted({"cpu", jax.default_backend()}))
        raise user_error(
            f"JAX_PLATFORMS={asked}, for which this machine has no device",
            f"one of {there}",
            "correct it, or unset it to use the best available",
        ) from error
