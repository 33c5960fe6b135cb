"""Kaleido diffusion in JAX/Flax. Importing this package touches no device, no network and no TensorFlow."""

__version__ = "0.1.0"
