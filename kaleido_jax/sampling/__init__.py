"""Sampling: the pipeline, edits of latents, recipes and output."""

from kaleido_jax.runtime.xla_flags import before_backend

before_backend()
