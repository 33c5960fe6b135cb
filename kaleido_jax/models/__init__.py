"""Networks: the joint model, T5, the nest of UNets, and what they are made of."""

from kaleido_jax.runtime.xla_flags import before_backend

before_backend()
