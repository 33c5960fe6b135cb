"""Exports of a trained model: a folder for inference, StableHLO programs."""

from kaleido_jax.runtime.xla_flags import before_backend

before_backend()
