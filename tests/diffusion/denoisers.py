"""Denoisers of plain functions, for tests of samplers and guidance rules."""

from kaleido_jax.diffusion import samplers
from kaleido_jax.diffusion.guidance import CFG, Denoiser


def denoiser(denoise, cond=(), uncond=(), **parts):
    """A denoiser of (images, times, condition) -> predictions."""
    given = {"denoise": denoise, "cond": cond, "uncond": uncond, "read": lambda *states: cond, "states": ()}
    return Denoiser(**given | parts)


def reverse(predict, *args):
    """The sampler's loop on (images, times) -> predictions, without guidance."""
    model = denoiser(lambda images, times, condition: predict(images, times))
    return samplers.reverse(model, CFG(gamma=1.0), *args)
