"""Diffusion: noise schedules, the loss, guidance rules and samplers."""

from kaleido_jax.runtime.xla_flags import before_backend

before_backend()
