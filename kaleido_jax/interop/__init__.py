"""Checkpoints of other programs: T5 and MDM weights, seqio and t5x."""

from kaleido_jax.runtime.xla_flags import before_backend

before_backend()
