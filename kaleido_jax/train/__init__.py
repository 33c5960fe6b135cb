"""Training from a config, with its state, step and loop."""

from kaleido_jax.runtime.xla_flags import before_backend

before_backend()
