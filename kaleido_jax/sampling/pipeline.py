"""The public Python API: captions -> latents -> images, with one set of parameters."""

import dataclasses
import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kaleido_jax.array_types import HostTokens, Keys, Scalar, Tokens
from kaleido_jax.array_types import Sample as SampleArray
from kaleido_jax.config.checks import mesh_sizes, validate
from kaleido_jax.config.codec import open_codec
from kaleido_jax.config.schema import Config, Diffusion, Mesh, Sample
from kaleido_jax.errors import nearest, user_error
from kaleido_jax.latents.codec import Codec
from kaleido_jax.latents.constrain import Constraint
from kaleido_jax.latents.tokenizer import SHIPPED, round_up
from kaleido_jax.latents.types import Latents
from kaleido_jax.models.kaleido import Kaleido, build_model
from kaleido_jax.runtime.files import fingerprint
from kaleido_jax.runtime.mesh import batch_sharding, make_mesh
from kaleido_jax.runtime.progress import progress
from kaleido_jax.runtime.randomness import sample_keys
from kaleido_jax.runtime.xla_flags import warn_of_wrong_reductions
from kaleido_jax.sampling import functional
from kaleido_jax.sampling.functional import EncodedCaptions
from kaleido_jax.sampling.output import KaleidoOutput, Recipe, RowRecipe
from kaleido_jax.sampling.tokens import (
    Prefix,
    SampledLatents,
    caption_tokens,
    latents_tokens,
    pad_rows,
    prefix_rows,
    read_latents,
)
from kaleido_jax.sampling.weights import load_export, load_workdir

BUNDLED: tuple[str, ...] = ()  # names of models that come with the package
VOCABULARY = "spiece.model"  # in an exported folder whose vocabulary is none of the package's
OF_THE_GRID = ("captions", "images_per_caption")  # fields of config.sample that choose what is sampled, not how
OF_LOADING = ("autoguidance_step", "autoguidance_workdir")  # these were read with the weights
OF_THE_PRIOR = ("temperature", "top_k", "top_p")


@dataclass(frozen=True, kw_only=True)
class _PriorInputs:
    """What sampling z needs besides the captions; `per_row` and `keys` have one entry a caption."""

    keys: Keys
    per_row: dict[str, np.ndarray]
    constraint: Constraint | None
    settings: tuple[tuple[str, float], ...]  # compiled in


class KaleidoPipeline:
    """Captions -> latents -> images with one set of (EMA) parameters.

    Sample i is a function of (seed, i) and its caption alone: neither the batch nor the devices matter. Samples are
    split over the mesh axes data and fsdp; the parameters stay as they are placed.
    """

    def __init__(
        self,
        config: Config,
        params: dict[str, Any],
        codec: Codec,
        step: int = 0,
        chunk: int = 50,
        bad_params: dict[str, Any] | None = None,
    ) -> None:
        """`params` has the parts encoder, prior (where there are latents) and denoiser; `chunk` is the largest batch.

        `bad_params` is the same of a worse model, for autoguidance.
        """
        warn_of_wrong_reductions(jax.default_backend())
        self.config, self.params, self.codec = config, params, codec
        self.step, self.chunk, self.bad_params = step, chunk, bad_params
        self._model = build_model(config, codec.tokenizer.base_vocab_size)
        self._mesh = make_mesh(mesh_sizes(config.mesh, jax.device_count()))

    @staticmethod
    def from_pretrained(path_or_name: str | Path, config: Config | None = None) -> "KaleidoPipeline":
        """The model of a workdir (EMA of its latest checkpoint) or of an exported folder.

        Args:
          path_or_name: a folder, or the name of a bundled model.
          config: instead of the folder's config.json, which is taken without its mesh: all devices here then split
            the samples, and each holds all parameters.

        Raises:
          UserError: nothing there, damage, no checkpoint, or no T5 weights for an encoder that was frozen.
        """
        folder = Path(path_or_name).expanduser()
        if config is None and not folder.is_dir():
            raise user_error(
                f"no model {str(path_or_name)!r}",
                f"a workdir, an exported folder or a bundled name ({', '.join(BUNDLED) or 'none is bundled yet'})",
                "correct the path",
            )
        if config is None:
            config = dataclasses.replace(Config.from_json(folder), mesh=Mesh())
        exported = not (folder / "checkpoints").is_dir() and any(folder.glob("*.safetensors"))
        t5 = config.model.t5
        if exported and t5.vocabulary not in SHIPPED and (folder / VOCABULARY).is_file():
            t5 = dataclasses.replace(t5, vocabulary=str(folder / VOCABULARY))
            config = dataclasses.replace(config, model=dataclasses.replace(config.model, t5=t5))
        codec = open_codec(config)
        weights = (load_export if exported else load_workdir)(config, folder, codec.tokenizer.base_vocab_size)
        return KaleidoPipeline(config, weights.params, codec, weights.step, bad_params=weights.bad_params)

    # ------------------------------------------------------------------------------------------ sampling
    def __call__(
        self,
        captions: str | Sequence[str],
        *,
        images_per_caption: int = 1,
        seed: int = 0,
        latents: Latents | Sequence[Latents] | None = None,
        prefix: Prefix | list[Prefix] = None,
        grammar: bool = True,
        **overrides: Any,
    ) -> KaleidoOutput:
        """Samples one z for each caption, and from it images that differ in noise alone.

        The sample index of the z of row i is i, that of the noise of its image k is i * images_per_caption + k. So a
        caption given twice gets two z, and `latents=out.latents[0]` with the same seed draws image 0 of row 0 again,
        or, edited, another image from the same noise.

        Args:
          captions: one or several.
          images_per_caption: images of each, which share its z.
          seed: 0..2**32-1; with the sample index decides every draw.
          latents: z to take instead of sampling it; one for all captions, or one for each.
          prefix: what each z must begin with, e.g. Latents(text=...) to keep the text and sample the rest; one for all
            captions, or a list of one for each (None locks nothing).
          grammar: mask the prior so that every z parses; without, some latents may be None (see `problems`).
          **overrides: fields of config.sample for this call, e.g. gamma=3.0, num_steps=50, sampler="ddim".

        Raises:
          UserError: captions, latents or prefixes that are not valid or too long; an override that is unknown or out
            of range.
          FloatingPointError: the model's samples are not finite.
        """
        captions = [captions] if isinstance(captions, str) else list(captions)
        sample = self._override(overrides | {"grammar": grammar})
        recipe = self.recipe(
            captions, images_per_caption=images_per_caption, seed=seed, sample=sample, sampled=latents is None
        )
        z = self._given(captions, seed, sample, latents, prefix)
        keys = sample_keys(seed, "image", 0, jnp.arange(len(captions) * images_per_caption))
        found, x = self._sample(captions, z, images_per_caption, keys, sample)
        if not np.isfinite(x).all():
            raise FloatingPointError("samples are not finite; check the checkpoint, or lower gamma")
        samples = found if self._model.has_prior else []
        for row, one in zip(recipe["rows"], samples, strict=False):
            row["tokens"], row["problem"] = list(one.spelled(self.codec)), one.problem
            row["latents"] = one.latents.to_json() if one.latents else None
        return KaleidoOutput(x=x.reshape(len(captions), -1, *x.shape[1:]), samples=samples, recipe=recipe)

    def sample_latents(
        self,
        captions: Sequence[str],
        *,
        seed: int,
        indices: Sequence[int] | None = None,
        sample: Sample | list[Sample] | None = None,
        prefix: list[Prefix] | None = None,
    ) -> list[SampledLatents]:
        """z ~ p(z | c) for each caption, without images.

        Args:
          captions: one a sample.
          seed: with `indices` decides every draw.
          indices: sample index of each caption; default 0, 1, 2, ...
          sample: temperature, top_k, top_p, grammar; default the config's. A list has one for each caption, of the
            same `grammar`; one compiled function then serves all values.
          prefix: what each z must begin with: latents of its first segments, or tokens; None locks nothing.

        Raises:
          UserError: a prefix is not one of such latents, or too long.
        """
        tokens, found = self.caption_tokens(captions), []
        inputs = self._prior_inputs(seed, _indices(indices, captions), sample or self.config.sample, prefix)
        with progress("latents", len(captions), "sample") as advance:
            for rows, real in self._batches(len(captions), len(captions)):
                found.append(self._sample_z(self._encode(self.params, tokens[rows]), rows, inputs)[:real])
                advance(real)
        return [self._read(row) for row in np.concatenate(found)]

    def sample_images(
        self,
        captions: Sequence[str],
        latents: Sequence[Sequence[int]] | None,
        *,
        seed: int,
        indices: Sequence[int] | None = None,
        sample: Sample | None = None,
    ) -> Float[np.ndarray, "b ..."]:
        """x ~ p(x | c, z) for each caption and given z.

        Args:
          captions: one a sample.
          latents: tokens of z for each (from `sample_latents` or `latents_tokens`); None for the baseline.
          seed: with `indices` decides the noise.
          indices: sample index of each; default 0, 1, 2, ...
          sample: sampler, steps, guidance, gamma, threshold; default the config's.

        Returns:
          float32 samples at the highest resolution (B, H, W, 3) in the model range, or points (B, dim).

        Raises:
          UserError: autoguidance without the parameters of a worse model.
        """
        keys = sample_keys(seed, "image", 0, _indices(indices, captions))
        given = latents or [()] * len(captions)
        z = [SampledLatents(tokens=tuple(ids), latents=None) for ids in given]
        return self._sample(captions, z, 1, keys, sample or self.config.sample)[1]

    # ------------------------------------------------------------------------------------------- recipes
    def recipe(
        self, captions: Sequence[str], *, images_per_caption: int, seed: int, sample: Sample, sampled: bool = True
    ) -> Recipe:
        """The recipe of a call before its latents are known; without `sampled` they are given.

        Raises:
          UserError: no captions, or a number out of range.
        """
        if not captions:
            raise user_error("no captions", "at least one", "give some")
        for name, value, least, most in (
            ("images_per_caption", images_per_caption, 1, 2**31 - 1),
            ("seed", seed, 0, 2**32 - 1),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise user_error(f"{name} = {value!r}", f"a whole number from {least} to {most}", "correct it")
        has_prior, k = self._model.has_prior, images_per_caption
        rows: list[RowRecipe] = [
            {
                "caption": caption,
                "latents_index": i if has_prior and sampled else None,
                "tokens": None,
                "latents": None,
                "problem": "",
                "noise_indices": list(range(i * k, (i + 1) * k)),
            }
            for i, caption in enumerate(captions)
        ]
        settings = {name: v for name, v in dataclasses.asdict(sample).items() if name not in OF_THE_GRID}
        return {"model": self._identity, "seed": seed, "sample": json.loads(json.dumps(settings)), "rows": rows}

    @functools.cached_property
    def _identity(self) -> dict[str, Any]:
        parts = [dataclasses.asdict(getattr(self.config, part)) for part in ("model", "diffusion", "latents")]
        return {
            "name": self.config.name,
            "step": self.step,
            "config": fingerprint(json.dumps(parts)),
            "weights": functional.weights_checksum(self.params),
        }

    # ------------------------------------------------------------------------------------------ arguments
    def caption_tokens(self, captions: Sequence[str]) -> HostTokens:
        """Token ids of captions with eos, padded to the config's caption length.

        Raises:
          UserError: a caption is no text, or is too long.
        """
        return caption_tokens(captions, self.codec.tokenizer, self.config.data.max_caption_tokens)

    def latents_tokens(self, z: Latents) -> tuple[int, ...]:
        """Tokens of (maybe edited) latents, for `sample_images`.

        Raises:
          UserError: not valid, segments missing, or more than twice as long as the config's bucket.
        """
        return latents_tokens(z, self.codec, self.config.latents.max_latents_tokens)

    def _override(self, overrides: dict[str, Any]) -> Sample:
        """config.sample with the fields of a call, checked like a config."""
        values = dataclasses.asdict(self.config)
        known = [name for name in values["sample"] if name not in OF_THE_GRID + OF_LOADING]
        for name in overrides:
            if name not in known:
                near = nearest(name, known)
                raise user_error(f"unknown argument {name!r}", near or f"one of {', '.join(known)}", "correct the name")
        return validate(values | {"sample": values["sample"] | overrides}).sample

    def _given(
        self,
        captions: list[str],
        seed: int,
        sample: Sample,
        latents: Latents | Sequence[Latents] | None,
        prefix: Prefix | list[Prefix],
    ) -> list[SampledLatents] | _PriorInputs:
        """The z of a call, or what is needed to sample them; a baseline's are empty."""
        if not self._model.has_prior and (latents is not None or prefix is not None):
            raise user_error("latents for a model without", "none", "leave them out, or take another model")
        if latents is not None and prefix is not None:
            raise user_error("latents and prefix", "one of them", "leave out the other")
        if not self._model.has_prior:
            return [SampledLatents(tokens=(), latents=None)] * len(captions)
        if latents is not None:
            each = [latents] * len(captions) if isinstance(latents, Latents) else list(latents)
            _check_number("latents", each, captions)
            return [SampledLatents(tokens=self.latents_tokens(z), latents=z) for z in each]
        if isinstance(prefix, list):
            _check_number("prefix", prefix, captions)
        elif prefix is not None:
            prefix = [prefix] * len(captions)
        return self._prior_inputs(seed, np.arange(len(captions)), sample, prefix)

    def _prior_inputs(
        self, seed: int, indices: Int[np.ndarray, "b"], sample: Sample | list[Sample], prefix: list[Prefix] | None
    ) -> _PriorInputs:
        per_row, settings = {}, ()
        if isinstance(sample, Sample):
            grammar, settings = sample.grammar, tuple((name, getattr(sample, name)) for name in OF_THE_PRIOR)
        else:
            grammar = sample[0].grammar
            if any(one.grammar != grammar for one in sample):
                raise user_error("samples with and without grammar", "the same for all of a call", "make two calls")
            dtypes = {"temperature": np.float32, "top_k": np.int32, "top_p": np.float32}
            per_row = {name: np.asarray([getattr(s, name) for s in sample], dtypes[name]) for name in OF_THE_PRIOR}
        constraint = self._constraint if grammar else None
        if prefix is not None:
            per_row["prefix"] = prefix_rows(prefix, self.codec, self.config.latents.max_latents_tokens, grammar)
        keys = sample_keys(seed, "latents", 0, indices)
        return _PriorInputs(keys=keys, per_row=per_row, constraint=constraint, settings=settings)

    @functools.cached_property
    def _constraint(self) -> Constraint:
        """The grammar's tables on the device."""
        latents, host = self.config.latents, self.codec.constraint
        least = int(host.tokens_to_end(host.start(1))[0])
        if least > latents.max_latents_tokens:
            raise user_error(
                f"config.latents.max_latents_tokens = {latents.max_latents_tokens}",
                f"at least {least} for {', '.join(latents.segments)}",
                "raise it, or sample with grammar=False",
            )
        return jax.tree.map(jnp.asarray, host)

    def _read(self, row: Int[np.ndarray, "t"]) -> SampledLatents:
        return read_latents(row, self.codec)

    # -------------------------------------------------------------------------------------------- batches
    def _sample(
        self, captions: Sequence[str], z: list[SampledLatents] | _PriorInputs, each: int, keys: Keys, sample: Sample
    ) -> tuple[list[SampledLatents], Float[np.ndarray, "b ..."]]:
        """(z of each caption, `each` samples x of each), in batches; captions are encoded once."""
        tokens, found, images = self.caption_tokens(captions), [], []
        limit = self.config.latents.max_latents_tokens
        with progress("images", len(captions) * each, "img") as advance:
            for rows, real in self._batches(len(captions), len(captions)):
                encoded, bad = self._encode(self.params, tokens[rows]), None
                if self.bad_params is not None:
                    bad = self.bad_params, self._encode(self.bad_params, tokens[rows])
                if isinstance(z, _PriorInputs):
                    here = [self._read(row) for row in self._sample_z(encoded, rows, z)[:real]]
                else:
                    here = z[rows[0] : rows[0] + real]
                found += here
                spelled = pad_rows([one.spelled(self.codec) for one in here], limit)
                for local, fresh in self._batches(real * each, len(captions) * each):
                    noise = keys[rows[0] * each + local]
                    images.append(self._sample_x(encoded, bad, local // each, spelled, noise, sample)[:fresh])
                    advance(fresh)
        return found, np.concatenate(images)

    def _batches(self, total: int, of: int) -> Iterator[tuple[Int[np.ndarray, "b"], int]]:
        """(rows, how many of them are new) until `total`; equal batches, so that one compiled function serves all.

        Their size is that for `of` rows: the chunk at most, and divisible over the devices. The last row fills up.
        """
        shards = self._mesh.shape["data"] * self._mesh.shape["fsdp"]
        size = round_up(min(self.chunk, of), shards)
        for start in range(0, total, size):
            yield np.minimum(np.arange(start, start + size), total - 1), min(size, total - start)

    def _encode(self, params: dict[str, Any], tokens: HostTokens) -> EncodedCaptions:
        return _encode_captions(self._model, params, self._split(tokens))

    def _sample_z(self, captions: EncodedCaptions, rows: Int[np.ndarray, "b"], inputs: _PriorInputs) -> HostTokens:
        keys, per_row = jax.tree.map(lambda leaf: self._split(leaf[rows]), (inputs.keys, inputs.per_row))
        z = _sample_latents(
            self.params,
            captions,
            keys,
            per_row,
            inputs.constraint,
            model=self._model,
            max_len=self.config.latents.max_latents_tokens,
            settings=inputs.settings,
        )
        return np.asarray(z)

    def _sample_x(
        self,
        captions: EncodedCaptions,
        bad: tuple[dict[str, Any], EncodedCaptions] | None,
        rows: Int[np.ndarray, "b"],
        z: HostTokens,
        keys: Keys,
        sample: Sample,
    ) -> Float[np.ndarray, "b ..."]:
        """One image for each of `rows`, which point into captions and z."""
        x = _sample_images(
            self.params,
            captions,
            self._split(rows),
            self._split(z[rows]),
            self._split(keys),
            # As an array, so that one compiled function serves every gamma; without guidance there is none.
            None if sample.gamma == 1 else jnp.float32(sample.gamma),
            bad,
            model=self._model,
            diffusion=self.config.diffusion,
            sample=_compiled_in(sample),
        )
        return np.asarray(x)

    def _split(self, rows: np.ndarray | Array) -> Array:
        """Rows on their devices."""
        return jax.device_put(rows, batch_sharding(self._mesh))


# ------------------------------------------------------------------- compiled once for all pipelines of one model
_encode_captions = jax.jit(functional.encode_captions, static_argnums=0)


@functools.partial(jax.jit, static_argnames=("model", "max_len", "settings"))
def _sample_latents(
    params: dict[str, Any],
    captions: EncodedCaptions,
    keys: Keys,
    per_row: dict[str, Array],
    constraint: Constraint | None,
    *,
    model: Kaleido,
    max_len: int,
    settings: tuple[tuple[str, float], ...],
) -> Tokens:
    given = {"max_len": max_len, "constraint": constraint, **dict(settings), **per_row}
    return functional.sample_latents(model, params, captions, keys, **given)


@functools.partial(jax.jit, static_argnames=("model", "diffusion", "sample"))
def _sample_images(
    params: dict[str, Any],
    captions: EncodedCaptions,
    rows: Int[Array, "b"],
    z: Tokens,
    keys: Keys,
    gamma: Scalar | None,
    bad: tuple[dict[str, Any], EncodedCaptions] | None,
    *,
    model: Kaleido,
    diffusion: Diffusion,
    sample: Sample,
) -> SampleArray:
    bad = bad and (bad[0], bad[1].take(rows))
    captions = captions.take(rows)
    return functional.sample_images(model, params, captions, z, keys, gamma, bad, diffusion=diffusion, sample=sample)


def _compiled_in(sample: Sample) -> Sample:
    """Only what the image's function is compiled for, so that other changes do not compile anew."""
    others = (*OF_THE_GRID, *OF_LOADING, *OF_THE_PRIOR, "gamma", "grammar")
    return dataclasses.replace(sample, **{name: getattr(Sample(), name) for name in others})


def _indices(indices: Sequence[int] | None, captions: Sequence[str]) -> Int[np.ndarray, "b"]:
    return np.asarray(range(len(captions)) if indices is None else indices, np.int32)


def _check_number(name: str, given: list, captions: list[str]) -> None:
    if len(given) != len(captions):
        raise user_error(f"{len(given)} {name} for {len(captions)} captions", "one for each", "correct the list")
