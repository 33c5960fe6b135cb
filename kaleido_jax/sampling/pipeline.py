"""The public Python API: sample latents z for captions, and draw images from captions and z."""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, UInt8

from kaleido_jax.config.checks import mesh_sizes
from kaleido_jax.config.codec import open_codec
from kaleido_jax.config.schema import Config, Sample, sample_shapes, scales
from kaleido_jax.diffusion.guidance import condition_annealed, guided_rule, no_guidance, start_memory
from kaleido_jax.diffusion.samplers import reverse
from kaleido_jax.errors import user_error
from kaleido_jax.interop.t5.load import load_pretrained
from kaleido_jax.latents.codec import Codec
from kaleido_jax.latents.types import Latents
from kaleido_jax.latents.validity import LatentsError
from kaleido_jax.models.decode import sample_tokens, shift_right
from kaleido_jax.models.kaleido import build_model, init_params, null_tokens, split_frozen
from kaleido_jax.models.t5 import EOS, PAD
from kaleido_jax.runtime import checkpoints
from kaleido_jax.runtime.mesh import make_mesh, shardings_of
from kaleido_jax.runtime.progress import progress
from kaleido_jax.runtime.randomness import sample_keys
from kaleido_jax.runtime.xla_flags import warn_of_wrong_reductions


@dataclass(frozen=True, kw_only=True)
class SampledLatents:
    """z as sampled: tokens always, the readable form where they parse, the reason where they do not."""

    tokens: tuple[int, ...]  # up to and with eos, no padding
    latents: Latents | None
    problem: str = ""


class KaleidoPipeline:
    """Captions -> latents -> images with one set of (EMA) parameters.

    Sample i is a function of (seed, i) and its caption alone: neither the batch nor the devices matter.
    """

    def __init__(
        self,
        config: Config,
        params: dict,
        codec: Codec,
        step: int = 0,
        chunk: int = 50,
        bad_params: dict | None = None,
    ):
        """`params` has the parts encoder, prior (where there are latents) and denoiser; `chunk` is the batch.

        `bad_params` is the same of a worse model, for autoguidance.
        """
        self.config, self.params, self.codec, self.step, self.chunk = config, params, codec, step, chunk
        self.bad_params = bad_params
        warn_of_wrong_reductions(jax.default_backend())
        self._model = build_model(config, codec.tokenizer.base_vocab_size)

    @staticmethod
    def from_workdir(config: Config, workdir: Path) -> "KaleidoPipeline":
        """The EMA parameters of a workdir's latest checkpoint, and a frozen encoder from the T5 checkpoint.

        With config.sample.guidance = "autoguidance" also those of `autoguidance_step`.

        Raises:
          UserError: no such checkpoint there, or no T5 weights for a frozen encoder.
        """
        codec = open_codec(config)
        model = build_model(config, codec.tokenizer.base_vocab_size)
        boxed = jax.eval_shape(functools.partial(init_params, model), jax.random.key(0))
        trainable, frozen = split_frozen(boxed, config)
        if frozen and config.model.t5.checkpoint is None:
            raise user_error("a frozen encoder without weights", "config.model.t5.checkpoint", "set it to where T5 is")
        mesh = make_mesh(mesh_sizes(config.mesh, jax.device_count()))
        shapes = nn.meta.unbox(trainable)
        wanted = checkpoints.abstract(shapes, shardings_of(trainable, mesh))
        ema, step = checkpoints.restore_ema(workdir, wanted)
        bad = None
        if config.sample.guidance == "autoguidance":
            folder = Path(config.sample.autoguidance_workdir or workdir)
            bad, _ = checkpoints.restore_ema(folder, wanted, config.sample.autoguidance_step)
        loaded = load_pretrained(config, nn.meta.unbox(frozen), shardings_of(frozen, mesh))
        return KaleidoPipeline(config, ema | loaded, codec, step, bad_params=bad and bad | loaded)

    # -------------------------------------------------------------------------------------- latents
    def sample_latents(
        self,
        captions: list[str],
        *,
        seed: int,
        indices: list[int] | None = None,
        sample: Sample | list[Sample] | None = None,
        prefix: list[Latents | Sequence[int] | None] | None = None,
    ) -> list[SampledLatents]:
        """Draws z ~ p(z | c) for each caption.

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
        sample = sample or self.config.sample
        per_row, settings = ({}, _prior_settings(sample)) if isinstance(sample, Sample) else (_per_row(sample), ())
        grammar = sample.grammar if isinstance(sample, Sample) else _one_grammar(sample)
        if prefix is not None:
            per_row["prefix"] = self._locked(prefix, len(captions), grammar)
        keys = sample_keys(seed, "latents", 0, _indices(indices, captions))
        draw = functools.partial(
            self._draw_tokens, constraint=self._constraint[1] if grammar else None, settings=settings
        )
        tokens = self._chunked("latents", draw, self.caption_tokens(captions), keys, per_row)
        return [self._read(row) for row in tokens]

    @functools.cached_property
    def _constraint(self):
        """The grammar's tables on the host, for checks, and on the device, for the loop."""
        latents = self.config.latents
        host = self.codec.constraint
        if int(host.tokens_to_end(host.start(1))[0]) > latents.max_latents_tokens:
            raise user_error(
                f"config.latents.max_latents_tokens = {latents.max_latents_tokens}",
                f"at least {int(host.tokens_to_end(host.start(1))[0])} for {', '.join(latents.segments)}",
                "raise it, or set config.sample.grammar = False",
            )
        return host, jax.tree.map(jnp.asarray, host)

    def _locked(self, prefix, rows, grammar):
        limit, out = (
            self.config.latents.max_latents_tokens,
            np.zeros((rows, self.config.latents.max_latents_tokens), np.int32),
        )
        for i, (row, given) in enumerate(zip(out, prefix, strict=True)):
            ids = given or ()
            if isinstance(given, Latents):
                ids = self.codec.prefix(given)
            vocab_size = self.codec.tokenizer.vocab_size
            if len(ids) > limit or not all(0 < token < vocab_size for token in ids):
                raise user_error(
                    f"prefix {i} of {len(ids)} tokens",
                    f"at most {limit} (config.latents.max_latents_tokens), ids 1..{vocab_size - 1}",
                    "shorten or correct it",
                )
            if grammar:
                self._check_prefix(i, ids, limit)
            row[: len(ids)] = ids
        return out

    def _check_prefix(self, i, ids, limit):
        place, wrong = self._constraint[0].follow(ids)
        if wrong is not None:
            raise user_error(
                f"prefix {i} with {self.codec.tokenizer.piece(ids[wrong])!r} as token {wrong}",
                "what the grammar may go on with",
                "correct it, or set config.sample.grammar = False",
            )
        needed = len(ids) + int(self._constraint[0].tokens_to_end(place)[0])
        if needed > limit:
            raise user_error(
                f"prefix {i}, which needs {needed} tokens to the end",
                f"at most {limit} (config.latents.max_latents_tokens)",
                "shorten it",
            )

    def _read(self, row):
        ended = np.flatnonzero(row == EOS)
        ids = tuple(int(i) for i in (row[: ended[0] + 1] if len(ended) else row))
        try:
            z = self.codec.decode(ids)
        except LatentsError as error:
            return SampledLatents(tokens=ids, latents=None, problem=str(error))
        if not len(ended):
            return SampledLatents(tokens=ids, latents=None, problem="cut off before eos")
        return SampledLatents(tokens=ids, latents=z)

    @functools.partial(jax.jit, static_argnums=0, static_argnames="settings")
    def _draw_tokens(self, params, captions, keys, per_row, *, constraint, settings):
        apply = functools.partial(self._model.apply, {"params": params})
        h_c, c_mask = apply(captions, method="encode")
        max_len = self.config.latents.max_latents_tokens
        cache = apply(h_c, max_len, method="start_decoding")

        def step(token, index, cache):
            return apply(token, index, cache, c_mask, method="decode_step")

        return sample_tokens(step, cache, keys, max_len=max_len, constraint=constraint, **dict(settings), **per_row)

    # --------------------------------------------------------------------------------------- images
    def draw(
        self,
        captions: list[str],
        latents: list[tuple[int, ...]] | None,
        *,
        seed: int,
        indices: list[int] | None = None,
        sample: Sample | None = None,
    ) -> np.ndarray:
        """Draws x ~ p(x | c, z).

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
        z = np.zeros((len(captions), self.config.latents.max_latents_tokens), np.int32)
        for row, tokens in zip(z, latents or (), strict=False):
            row[: len(tokens)] = tokens
        sample = sample or self.config.sample
        # As an array, so that one compiled function serves every gamma; without guidance there is none.
        gamma = None if sample.gamma == 1 else jnp.float32(sample.gamma)
        bad = None
        if sample.guidance == "autoguidance" and gamma is not None:
            if self.bad_params is None:
                raise user_error("autoguidance", "`bad_params` of a worse model", "load it by config.sample.guidance")
            bad = self.bad_params
        draw = functools.partial(self._draw_images, bad_params=bad, gamma=gamma, settings=_image_settings(sample))
        return self._chunked("images", draw, self.caption_tokens(captions), z, keys)

    @functools.partial(jax.jit, static_argnums=0, static_argnames="settings")
    def _draw_images(self, params, captions, z, keys, *, bad_params, gamma, settings):
        c, model = self.config, self.config.model
        read, denoise = self._denoiser(params)
        seen, unseen = self._states(params, captions, z)
        bad = None
        if bad_params is not None:
            read_bad, denoise_bad = self._denoiser(bad_params)
            bad = no_guidance(denoise_bad, read_bad(*self._states(bad_params, captions, z)[0]))
        rule = guided_rule(settings, c.diffusion, scales(model), gamma, denoise, read(*unseen), bad)
        if settings.guidance == "cads":
            predict = condition_annealed(rule, read, seen, keys, c.diffusion, settings)
        else:
            predict = rule(read(*seen))
        memory = start_memory(settings, len(captions), sample_shapes(model))
        return reverse(predict, keys, c.diffusion, settings, sample_shapes(model), scales(model), memory)[0]

    def _denoiser(self, params):
        """(states and masks -> condition, (images, times, condition) -> predictions)."""
        apply = functools.partial(self._model.apply, {"params": params})
        return functools.partial(apply, method="condition"), functools.partial(apply, method="denoise")

    def _states(self, params, captions, z):
        """(states, mask, ...) of caption and latents, and what stands for them without a condition."""
        apply = functools.partial(self._model.apply, {"params": params})
        h_c, c_mask = apply(captions, method="encode")
        h_0, mask_0 = apply(null_tokens(captions.shape[1]), method="encode")
        seen = (h_c, c_mask)
        unseen = (jnp.broadcast_to(h_0, h_c.shape), jnp.broadcast_to(mask_0, c_mask.shape))
        if self._model.has_prior:
            h_z, _ = apply(h_c, c_mask, shift_right(z), method="read_latents")
            seen += (h_z, z != PAD)
            unseen += (h_z, jnp.zeros_like(z, bool))
        return seen, unseen

    # -------------------------------------------------------------------------------------- helpers
    def caption_tokens(self, captions: list[str]) -> Int[np.ndarray, "b t"]:
        """Token ids of captions with eos, padded to the config's caption length.

        Raises:
          UserError: a caption is too long.
        """
        limit = self.config.data.max_caption_tokens
        out = np.zeros((len(captions), limit), np.int32)
        for row, caption in zip(out, captions, strict=True):
            ids = [*self.codec.tokenizer.encode(caption), EOS]
            if len(ids) > limit:
                raise user_error(
                    f"caption '{caption[:40]}...' of {len(ids)} tokens",
                    f"at most {limit} (config.data.max_caption_tokens)",
                    "shorten it",
                )
            row[: len(ids)] = ids
        return out

    def latents_tokens(self, z: Latents) -> tuple[int, ...]:
        """Tokens of (maybe edited) latents, for `draw`.

        Raises:
          UserError: not valid, segments missing, or longer than the config's bucket.
        """
        ids = self.codec.encode(z)
        if len(ids) > self.config.latents.max_latents_tokens:
            raise user_error(
                f"latents of {len(ids)} tokens",
                f"at most {self.config.latents.max_latents_tokens} (config.latents.max_latents_tokens)",
                "shorten them",
            )
        return tuple(ids)

    def _chunked(self, title, draw, *arrays) -> np.ndarray:
        """Runs in equal chunks, so that one compiled function serves any number of samples."""
        total, out = len(arrays[0]), []
        size = min(self.chunk, total)
        with progress(title, total, "sample") as advance:
            for start in range(0, total, size):
                rows = np.minimum(np.arange(start, start + size), total - 1)
                out.append(np.asarray(draw(self.params, *jax.tree.map(lambda a, rows=rows: a[rows], arrays))))
                advance(min(size, total - start))
        return np.concatenate(out)[:total]


def to_uint8(images: np.ndarray) -> UInt8[np.ndarray, "..."]:
    """From the model range to pixels, 128 x + 127."""
    return np.clip(np.round(images * 128 + 127), 0, 255).astype(np.uint8)


def _indices(indices, captions):
    return jnp.arange(len(captions)) if indices is None else jnp.asarray(indices, jnp.int32)


def _prior_settings(sample: Sample):
    return (("temperature", sample.temperature), ("top_k", sample.top_k), ("top_p", sample.top_p))


def _per_row(samples):
    fields = {"temperature": np.float32, "top_k": np.int32, "top_p": np.float32}
    return {name: np.asarray([getattr(s, name) for s in samples], dtype) for name, dtype in fields.items()}


def _one_grammar(samples):
    found = {sample.grammar for sample in samples}
    if len(found) != 1:
        raise user_error("samples with and without grammar", "the same for all of a call", "make two calls")
    return found.pop()


def _image_settings(sample: Sample) -> Sample:
    """Only what the image depends on, so that other changes do not compile anew."""
    default = Sample()
    return dataclasses.replace(
        sample,
        captions=(),
        images_per_latents=default.images_per_latents,
        gamma=default.gamma,
        autoguidance_step=default.autoguidance_step,
        autoguidance_workdir=default.autoguidance_workdir,
        temperature=default.temperature,
        top_k=default.top_k,
        top_p=default.top_p,
        grammar=default.grammar,
    )
