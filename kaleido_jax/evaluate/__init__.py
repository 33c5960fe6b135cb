"""Measures of trained models: protocols, metrics and feature networks."""

from kaleido_jax.runtime.xla_flags import before_backend

before_backend()
