"""Batched sampling: the functional core in equal batches, split over a mesh, compiled once for all pipelines."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Int

from kaleido_jax.array_types import HostTokens, Keys, Scalar, Tokens
from kaleido_jax.array_types import Sample as SampleArray
from kaleido_jax.config.schema import Diffusion, Sample
from kaleido_jax.diffusion import samplers
from kaleido_jax.diffusion.samplers import Reversing
from kaleido_jax.latents.constrain import Constraint
from kaleido_jax.latents.tokenizer import round_up
from kaleido_jax.models.kaleido import Kaleido
from kaleido_jax.runtime import distributed
from kaleido_jax.runtime.mesh import Rules, placing
from kaleido_jax.sampling import functional
from kaleido_jax.sampling.functional import Conditioned, EncodedCaptions

Params = dict[str, Any]
Placement = tuple[Mesh, Rules] | None  # of activations; None on one device
Watch = Callable[[int, int, SampleArray], None]  # (evaluations done, of how many, x0 so far on its devices)
OF_THE_GRID = (
    "captions",
    "latents_per_caption",
    "images_per_caption",
)  # fields of config.sample that say what is sampled, not how
OF_LOADING = ("autoguidance_step", "autoguidance_workdir")  # used when the weights are read
SETTINGS = tuple(
    field.name for field in dataclasses.fields(Sample) if field.name not in OF_THE_GRID + OF_LOADING
)  # what a call may set, and a recipe keeps
OF_THE_PRIOR = ("temperature", "top_k", "top_p")
OF_THE_STEPS = ("num_steps", "sigma_min", "start_at_n")  # where the network is evaluated
COMPILED_IN = tuple(sorted({*SETTINGS} - {*OF_THE_PRIOR, *OF_THE_STEPS, "gamma", "grammar"}))


@dataclass(frozen=True, kw_only=True)
class PriorInputs:
    """What sampling z needs besides the captions; `keys` and `per_row` have one entry for each of them."""

    keys: Keys
    per_row: dict[str, np.ndarray]
    constraint: Constraint | None
    settings: tuple[tuple[str, float | int], ...]  # compiled in


@dataclass(frozen=True, kw_only=True)
class BatchedModel:
    """A model that runs in batches of at most `chunk`, split over the devices of one process."""

    model: Kaleido
    diffusion: Diffusion
    max_latents_tokens: int
    sharding: NamedSharding  # of the rows
    rules: Rules  # of parameters and activations
    chunk: int

    @property
    def placement(self) -> Placement:
        """Where activations are, compiled in."""
        return (self.sharding.mesh, self.rules) if self.sharding.mesh.size > 1 else None

    def rows(self, total: int, of: int) -> Iterator[tuple[Int[np.ndarray, "b"], int]]:
        """(rows, how many of them are new) until `total`, in batches of one size, so that one compilation serves all.

        The size is that for `of` rows: at most the chunk, and a multiple of the devices. The last row is repeated.
        """
        size = round_up(min(self.chunk, of), self.smallest)
        for start in range(0, total, size):
            yield np.minimum(np.arange(start, start + size), total - 1), min(size, total - start)

    @property
    def smallest(self) -> int:
        """Rows of the smallest batch: one for each device."""
        return self.sharding.mesh.shape["data"] * self.sharding.mesh.shape["fsdp"]

    def encode(self, params: Params, tokens: HostTokens) -> EncodedCaptions:
        """The states of captions, on their devices."""
        return _together(_encode_captions, params, self._split(tokens), model=self.model, placement=self.placement)

    def sample_latents(
        self, params: Params, captions: EncodedCaptions, rows: Int[np.ndarray, "b"], inputs: PriorInputs
    ) -> HostTokens:
        """Tokens of z for each caption; `rows` point into the inputs."""
        keys, per_row = jax.tree.map(lambda leaf: self._split(leaf[rows]), (inputs.keys, inputs.per_row))
        z = _together(
            _sample_latents,
            params,
            captions,
            keys,
            per_row,
            inputs.constraint,
            model=self.model,
            placement=self.placement,
            max_len=self.max_latents_tokens,
            settings=inputs.settings,
        )
        return fetched(z)

    def sample_images(
        self,
        params: Params,
        captions: EncodedCaptions,
        bad: tuple[Params, EncodedCaptions] | None,
        rows: Int[np.ndarray, "b"],
        z: Int[np.ndarray, "n t"],
        keys: Keys,
        sample: Sample,
        watch: Watch | None = None,
    ) -> Float[np.ndarray, "b ..."]:
        """One image for each of `rows`, which point into captions and z."""
        settings = {"model": self.model, "diffusion": self.diffusion, "sample": _compiled_in(sample)}
        # As an array, so that one compiled function serves every gamma; None without guidance.
        gamma = None if sample.gamma == 1 else np.float32(sample.gamma)
        keys, bad_params = self._split(keys), bad and bad[0]
        inputs = params, captions, self._split(rows), self._split(z[rows]), bad
        placed = {"placement": self.placement}
        condition = _together(_condition_images, *inputs, model=self.model, sample=settings["sample"], **placed)
        state = _together(_start_images, keys, gamma, **settings)
        steps = samplers.evaluations(self.diffusion, sample)
        for i, evaluation in enumerate(steps):
            inputs = params, condition, keys, gamma, bad_params, state, evaluation
            state, x0 = _together(_image_step, *inputs, **settings, **placed)
            if watch is not None:
                watch(i + 1, len(steps), x0)
        return fetched(_finish(state, settings["sample"]))

    def _split(self, rows: np.ndarray | Array) -> Array:
        if self.sharding.is_fully_addressable:
            return jax.device_put(rows, self.sharding)
        # Over several processes, each of which has all rows: it puts those of its own devices there.
        if keys := jnp.issubdtype(rows.dtype, jax.dtypes.prng_key):
            rows = jax.random.key_data(rows)
        host = np.asarray(rows)
        placed = jax.make_array_from_callback(host.shape, self.sharding, lambda index: host[index])
        return jax.random.wrap_key_data(placed) if keys else placed


def _together(function: Any, *args: Any, **keywords: Any) -> Any:
    """function(...), which several processes compile before any of them calls it."""
    if distributed.process_count() > 1:
        distributed.compile_together(function, *args, **keywords)
    return function(*args, **keywords)


def fetched(x: Array) -> np.ndarray:
    """A whole array on the host, also the rows that other processes' devices hold."""
    return np.asarray(x if x.is_fully_addressable else multihost_utils.process_allgather(x, tiled=True))


@functools.partial(jax.jit, static_argnames=("model", "placement"))
def _encode_captions(params: Params, tokens: Tokens, *, model: Kaleido, placement: Placement) -> EncodedCaptions:
    with _placing(placement):
        return functional.encode_captions(model, params, tokens)


@functools.partial(jax.jit, static_argnames=("model", "placement", "max_len", "settings"))
def _sample_latents(
    params: Params,
    captions: EncodedCaptions,
    keys: Keys,
    per_row: dict[str, Array],
    constraint: Constraint | None,
    *,
    model: Kaleido,
    placement: Placement,
    max_len: int,
    settings: tuple[tuple[str, float | int], ...],
) -> Tokens:
    given = {"max_len": max_len, "constraint": constraint, **dict(settings), **per_row}
    with _placing(placement):
        return functional.sample_latents(model, params, captions, keys, **given)


@functools.partial(jax.jit, static_argnames=("model", "placement", "sample"))
def _condition_images(
    params: Params,
    captions: EncodedCaptions,
    rows: Int[Array, "b"],
    z: Tokens,
    bad: tuple[Params, EncodedCaptions] | None,
    *,
    model: Kaleido,
    placement: Placement,
    sample: Sample,
) -> Conditioned:
    bad = bad and (bad[0], bad[1].take(rows))
    with _placing(placement):
        return functional.condition_images(model, params, captions.take(rows), z, bad, sample=sample)


@functools.partial(jax.jit, static_argnames=("model", "diffusion", "sample"))
def _start_images(
    keys: Keys, gamma: Scalar | None, *, model: Kaleido, diffusion: Diffusion, sample: Sample
) -> Reversing:
    return functional.start_images(model, keys, gamma, diffusion=diffusion, sample=sample)


@functools.partial(jax.jit, static_argnames=("model", "placement", "diffusion", "sample"), donate_argnames="state")
def _image_step(
    params: Params,
    condition: Conditioned,
    keys: Keys,
    gamma: Scalar | None,
    bad_params: Params | None,
    state: Reversing,
    evaluation: Int[Array, "3"],
    *,
    model: Kaleido,
    placement: Placement,
    diffusion: Diffusion,
    sample: Sample,
) -> tuple[Reversing, SampleArray]:
    inputs = model, params, condition, keys, gamma, bad_params, state, evaluation
    with _placing(placement):
        return functional.image_step(*inputs, diffusion=diffusion, sample=sample)


@functools.partial(jax.jit, static_argnames="sample")
def _finish(state: Reversing, sample: Sample) -> SampleArray:
    return samplers.finish(state, sample)[0]


def _placing(placement: Placement) -> AbstractContextManager[None]:
    return placing(*(placement or (None, ())))


def _compiled_in(sample: Sample) -> Sample:
    """Only the fields that the image function is compiled for, so that other changes do not recompile it."""
    others = (*OF_THE_GRID, *OF_LOADING, *OF_THE_PRIOR, *OF_THE_STEPS, "gamma", "grammar")
    return dataclasses.replace(sample, **{name: getattr(Sample(), name) for name in others})
