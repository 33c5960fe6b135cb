"""Pipeline, the public Python API: captions -> latents -> images, with one set of parameters."""

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from kaleido_jax.array_types import HostTokens, Keys
from kaleido_jax.config.checks import mesh_sizes, validate
from kaleido_jax.config.codec import open_codec
from kaleido_jax.config.load import BUNDLED, MODELS, no_model
from kaleido_jax.config.schema import Config, Mesh, Sample
from kaleido_jax.errors import nearest, user_error
from kaleido_jax.latents import segments as registry
from kaleido_jax.latents.codec import Codec
from kaleido_jax.latents.constrain import Constraint
from kaleido_jax.latents.tokenizer import SHIPPED, round_up
from kaleido_jax.latents.types import Latents, segments_of, select
from kaleido_jax.models.kaleido import build_model
from kaleido_jax.runtime.files import fingerprint
from kaleido_jax.runtime.mesh import batch_sharding, make_mesh
from kaleido_jax.runtime.progress import progress
from kaleido_jax.runtime.randomness import sample_keys
from kaleido_jax.runtime.workdir import VOCABULARY, vocabulary_path
from kaleido_jax.runtime.xla_flags import warn_of_wrong_reductions
from kaleido_jax.sampling.batched import COMPILED_IN, OF_THE_PRIOR, SETTINGS, BatchedModel, PriorInputs, Watch
from kaleido_jax.sampling.editing import (
    Edited,
    Plan,
    contradiction_lines,
    edit_recipe,
    edit_seed,
    edited_recipe,
    one_image,
    plan_edit,
)
from kaleido_jax.sampling.functional import weights_checksum
from kaleido_jax.sampling.output import KaleidoOutput, pixels_of
from kaleido_jax.sampling.recipe import (
    Batch,
    EditRecipe,
    ModelRecipe,
    Recipe,
    RowRecipe,
    check_index,
    check_same_model,
    check_seed,
    load_recipe,
    new_recipe,
    settings_in,
)
from kaleido_jax.sampling.tokens import (
    Prefix,
    SampledLatents,
    caption_tokens,
    latents_tokens,
    pad_rows,
    prefix_rows,
    read_latents,
    unknown_characters,
    warn_of_unknown,
)
from kaleido_jax.sampling.weights import is_export, load_export, load_workdir

LARGEST_AGAIN = 256  # rows of a batch that `draw` repeats for the last bits of one image


class KaleidoPipeline:
    """Captions -> latents -> images with one set of (EMA) parameters.

    Sample i is a function of (seed, i) and its caption alone: neither the batch nor the devices matter. Samples are
    split over the mesh axes data and fsdp; the parameters keep their placement.
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

        `bad_params` are those of a worse model, for autoguidance.

        Raises:
          UserError: a chunk that is no whole number, or is below 1.
        """
        warn_of_wrong_reductions(jax.default_backend())
        _check_chunk(chunk)
        self.config, self.params, self.codec = config, params, codec
        self.step, self.bad_params = step, bad_params
        self._batched = BatchedModel(
            model=build_model(config, codec.tokenizer.base_vocab_size),
            diffusion=config.diffusion,
            max_latents_tokens=config.latents.max_latents_tokens,
            sharding=batch_sharding(make_mesh(mesh_sizes(config.mesh, jax.device_count()), config.mesh.across_slices)),
            rules=config.mesh.rules,
            chunk=chunk,
        )

    @staticmethod
    def from_pretrained(
        path_or_name: str | Path,
        config: Config | None = None,
        *,
        step: int | None = None,
        sigma_rel: float | None = None,
        chunk: int = 50,
    ) -> "KaleidoPipeline":
        """The model of a workdir (EMA of its latest checkpoint) or of an exported folder.

        Args:
          path_or_name: a folder, or the name of a bundled model.
          config: replaces the folder's config.json. Of that, the mesh is ignored: all devices here split the samples,
            and each holds all parameters.
          step: of a workdir, the step to take instead of the latest.
          sigma_rel: of a workdir with config.train.ema_profiles, the relative width of another average, between 0 and
            0.2886, made of its snapshots up to the latest or to `step`.
          chunk: the largest batch, samples.

        Raises:
          UserError: a chunk as in `__init__`; no such folder, no checkpoint or a damaged one, no such step or
            snapshots, or no T5 weights for a frozen encoder.
        """
        _check_chunk(chunk)  # before the weights are read
        folder = find_model(path_or_name) if config is None else folder_of(path_or_name)
        if config is None:
            config = dataclasses.replace(Config.from_json(folder), mesh=Mesh())
        exported = is_export(folder)
        if exported and (step, sigma_rel) != (None, None):
            raise user_error(f"step or sigma_rel of {path_or_name}, an export", "a workdir", "leave them out")
        t5 = config.model.t5
        own = t5.vocabulary not in SHIPPED and (folder / VOCABULARY).is_file()
        vocabulary = str(folder / VOCABULARY) if exported and own else vocabulary_path(t5.vocabulary, folder)
        if vocabulary != t5.vocabulary:
            t5 = dataclasses.replace(t5, vocabulary=vocabulary)
            config = dataclasses.replace(config, model=dataclasses.replace(config.model, t5=t5))
        codec = open_codec(config)
        where = config, folder, codec.tokenizer.base_vocab_size
        weights = load_export(*where) if exported else load_workdir(*where, step, sigma_rel)
        return KaleidoPipeline(config, weights.params, codec, weights.step, chunk, bad_params=weights.bad_params)

    # ------------------------------------------------------------------------------------------ sampling
    def __call__(
        self,
        captions: str | Sequence[str],
        *,
        images_per_caption: int = 1,
        seed: int = 0,
        latents: Latents | Sequence[Latents] | None = None,
        prefix: Latents | Sequence[Latents | None] | None = None,
        grammar: bool = True,
        **overrides: Any,
    ) -> KaleidoOutput:
        """Samples one z for each caption, and from it images that differ only in noise.

        The sample index of the z of row i is i, that of the noise of its image k is i * images_per_caption + k. So a
        caption given twice gets two z, and `latents=out.latents[0]` with the same seed draws image 0 of row 0 again,
        or, edited, another image from the same noise.

        Args:
          captions: one or several.
          images_per_caption: images of each, which share its z.
          seed: 0..2**32-1; together with the sample index it decides every draw.
          latents: z to use instead of sampling it; one for all captions, or one for each.
          prefix: what each z must begin with, e.g. Latents(text=...) to keep the text and sample the rest; one for all
            captions, or one for each (None locks nothing).
          grammar: mask the prior so that every z parses; otherwise some latents may be None (see `problems`).
          **overrides: fields of config.sample for this call, e.g. gamma=3.0, num_steps=50, sampler="ddim".

        Raises:
          UserError: captions, latents or prefixes that are invalid or too long; an override that is unknown or out of
            range; autoguidance without a worse model.
          FloatingPointError: the model's samples are not finite.
        """
        captions = _list_of(captions)
        sample = self.override(overrides | {"grammar": grammar})
        recipe = self.recipe(captions, images_per_caption, seed, sample, given=latents is not None)
        seed, images_per_caption = recipe["seed"], len(recipe["rows"][0]["noise_indices"])  # numpy's integers as ints
        z = self._given(captions, seed, sample, latents, prefix)
        keys = sample_keys(seed, "image", 0, jnp.arange(len(captions) * images_per_caption))
        self.caption_tokens(captions)  # refuses what is no text
        warn_of_unknown(captions, self.codec.tokenizer)
        found, x, batches = self._sample(captions, z, images_per_caption, keys, sample)
        x = _finite(x).reshape(len(captions), -1, *x.shape[1:])
        samples = found if self._batched.model.has_prior else []
        for row, one in zip(recipe["rows"], samples, strict=False):
            self._set_latents(row, one)
        for i, row in enumerate(recipe["rows"]):
            row["batch"] = batches[i * images_per_caption : (i + 1) * images_per_caption]
            row["pixels"] = _fingerprints(x[i])
        return KaleidoOutput(x=x, samples=samples, recipe=recipe)

    def draw(self, recipe: Recipe | str | Path, watch: Watch | None = None) -> KaleidoOutput:
        """The images of a recipe again, bit for bit on the machine that drew them.

        Each image is drawn alone. Where its pixels are not those that the recipe remembers (sums of floats may depend
        on the size of a batch), it is drawn again in batches of the sizes that it was drawn in, at its place in them.
        If they still differ, as on another machine or with another version of a library, the recipe of the output has
        another fingerprint.

        Args:
          recipe: of some images of this model, or a path that `load_recipe` reads.
          watch: called after each evaluation of the network with (how many are done, of how many, x0 so far of the
            image being drawn, on its device); what it raises ends the drawing.

        Raises:
          UserError: a recipe that cannot be read, of another model, or whose tokens are not those of its latents.
          FloatingPointError: the model's samples are not finite.
        """
        recipe = load_recipe(recipe)
        sample = self.settings_of(recipe)
        drawn, samples = [], []
        for row in recipe["rows"]:
            z = self._latents_of(row)
            keys = sample_keys(recipe["seed"], "image", 0, np.asarray(row["noise_indices"], np.int32))
            each = [self._draw_again(row, i, z, keys, sample, watch) for i in range(len(keys))]
            drawn.append(np.stack([x for x, _ in each]))
            row["batch"], row["pixels"] = [batch for _, batch in each], _fingerprints(drawn[-1])
            samples += [z] if z else []
        return KaleidoOutput(x=_finite(np.stack(drawn)), samples=samples, recipe=recipe)

    def edit(
        self,
        recipe: Recipe | str | Path,
        *,
        caption: str | None = None,
        latents: Latents | None = None,
        lock: str | Sequence[str] = (),
        resample: str | Sequence[str] = (),
        follow: bool | None = None,
        seed: int | None = None,
        watch: Watch | None = None,
        **changes: Any,
    ) -> Edited:
        """One image again with an edited z, from the same noise.

        Segments that are set stay as they are set, the others as they were, except for those that are sampled anew:
        the prior samples them under the segments before them. Since it samples segments in order, a segment behind a
        resampled one is resampled too, and if that one is locked or edited, the edit is refused.

        Args:
          recipe: of one image of this model, e.g. `out.recipe_of(0, 0)` or that of an edit; or a path.
          caption: another caption; all of z is behind it.
          latents: all of z; or single segments as keywords, e.g. text="...", bbox=[Box(...)].
          lock: segments that must stay.
          resample: segments to sample anew.
          follow: True samples what is behind the edited and locked segments anew; False keeps it, and `messages` say
            that it may no longer fit. None is the better one for each kind of edit that the protocol `edits` measures:
            anew, unless `resample` says what else, or an emoji scene's text changes in the background alone.
          seed: of what is sampled anew, by default one that follows from the recipe and differs from edit to edit.
            The noise keeps the recipe's own.
          watch: of the drawing, as in `draw`; first of the image before, then of the edited one.
          **changes: segments, and fields of config.sample, e.g. gamma=3.0.

        Raises:
          UserError: a recipe that cannot be drawn or is of several images, latents that are invalid or do not fit,
            an order that the prior cannot follow, an argument that is unknown.
          FloatingPointError: the model's samples are not finite.
        """
        recipe = load_recipe(recipe)
        row, old = self._editable(recipe)
        given, settings = _parted(changes, self.codec.segments)
        sample = self.override({**recipe["sample"], "grammar": True} | settings)
        self._check_worse(sample)
        new_caption = row["caption"] if caption is None else caption
        plan = plan_edit(
            old,
            self._edited(old, latents, given),
            self.codec.segments,
            given=segments_of(latents) if latents else tuple(given),
            lock=lock,
            resample=resample,
            follow=follow,
            caption_changed=new_caption != row["caption"],
        )
        seed = edit_seed(recipe["seed"], len(recipe["history"])) if seed is None else check_seed(seed)
        (z,) = self._resampled([plan], [new_caption], seed, row["noise_indices"], sample)
        edit = edit_recipe(recipe, plan, z, new_caption, seed, {name: getattr(sample, name) for name in settings})
        messages = unknown_characters([caption] if caption else [], self.codec.tokenizer)
        messages += [*plan.messages, *contradiction_lines(old, z, plan, self.codec.segments)]
        return self._draw_edit(recipe, z, new_caption, edit, messages, watch)

    def edit_latents(
        self,
        captions: Sequence[str],
        latents: Sequence[Latents],
        edits: Sequence[dict[str, Any]],
        *,
        seed: int,
        indices: Sequence[int] | None = None,
        sample: Sample | None = None,
        follow: bool | None = None,
    ) -> list[Latents]:
        """The z that `edit` gives for each of several images, without drawing any.

        Args:
          captions: one for each image.
          latents: z of each image before its edit.
          edits: segments of each, as `edit` takes them as keywords.
          seed: of what is sampled anew; `edit_seed` tells the one that `edit` takes.
          indices: sample index of each; default 0, 1, 2, ...
          sample: temperature, top_k, top_p; default the config's.
          follow: as in `edit`.

        Raises:
          UserError: latents that are invalid or do not fit; not latents, edits and an index for each caption.
        """
        _check_count("latents", latents, captions)
        _check_count("edits", edits, captions)
        plans = [
            plan_edit(
                old,
                self._edited(old, None, given),
                self.codec.segments,
                given=tuple(given),
                lock=(),
                resample=(),
                follow=follow,
            )
            for old, given in zip(latents, edits, strict=True)
        ]
        sample = dataclasses.replace(sample or self.config.sample, grammar=True)
        return self._resampled(plans, captions, seed, _indices(indices, captions).tolist(), sample)

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
          captions: one per sample.
          seed: together with `indices` it decides every draw.
          indices: sample index of each caption; default 0, 1, 2, ...
          sample: temperature, top_k, top_p, grammar; default the config's. A list has one for each caption, all with
            the same `grammar`; one compiled function then serves all values.
          prefix: what each z must begin with: latents of its first segments, or tokens; None locks nothing.

        Raises:
          UserError: a prefix is not one of these latents, or is too long; no captions, or not an index, settings or a
            prefix for each.
        """
        tokens, found = self.caption_tokens(_some(captions)), []
        seed, numbers = check_seed(seed), _indices(indices, captions)
        for name, given in (("settings", sample), ("prefixes", prefix)):
            if isinstance(given, list):
                _check_count(name, given, captions)
        inputs = self._prior_inputs(seed, numbers, sample or self.config.sample, prefix)
        with progress("latents", len(captions), "sample", wanted=len(captions) > 1) as advance:
            for rows, real in self._batched.rows(len(captions), len(captions)):
                encoded = self._batched.encode(self.params, tokens[rows])
                found.append(self._batched.sample_latents(self.params, encoded, rows, inputs)[:real])
                advance(real)
        return [read_latents(row, self.codec) for row in np.concatenate(found)]

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
          captions: one per sample.
          latents: tokens of z for each (from `sample_latents` or `latents_tokens`); None for the baseline.
          seed: together with `indices` it decides the noise.
          indices: sample index of each; default 0, 1, 2, ...
          sample: sampler, steps, guidance, gamma, threshold; default the config's.

        Returns:
          float32 samples at the highest resolution (B, H, W, 3) in the model range, or points (B, dim).

        Raises:
          UserError: latents for a baseline, none for another model, or not one for each caption; tokens of another
            vocabulary; no captions, or not an index for each; autoguidance without the parameters of a worse model.
        """
        _some(captions)
        if self._batched.model.has_prior != (latents is not None):
            found = "no latents for a model with them" if latents is None else "latents for a model without"
            raise user_error(found, "None for a baseline alone", "pass those of `sample_latents`, or None")
        given = [()] * len(captions) if latents is None else latents
        _check_count("latents", given, captions)
        keys = sample_keys(check_seed(seed), "image", 0, _indices(indices, captions))
        vocab_size = self.codec.tokenizer.vocab_size
        self._check_worse(sample or self.config.sample)
        z = [SampledLatents(tokens=tuple(ids), latents=None) for ids in given]
        if foreign := [token for one in z for token in one.tokens if not 0 <= token < vocab_size]:
            raise user_error(f"token {foreign[0]} in latents", f"ids 0..{vocab_size - 1}", "take them from this model")
        return self._sample(captions, z, 1, keys, sample or self.config.sample)[1]

    # ------------------------------------------------------------------------------------------- recipes
    def recipe(
        self, captions: Sequence[str], images_per_caption: int, seed: int, sample: Sample, given: bool = False
    ) -> Recipe:
        """The recipe of a call before its latents are sampled, or with `given` of one whose latents are given.

        Raises:
          UserError: no captions, a number out of range, or autoguidance without a worse model.
        """
        self._check_worse(sample)
        has_z = self._batched.model.has_prior and not given
        model = self._identity(sample)
        return new_recipe(model, captions, images_per_caption=images_per_caption, seed=seed, sample=sample, has_z=has_z)

    def sampled_recipe(
        self,
        caption: str,
        *,
        seed: int,
        indices: Sequence[int],
        sample: Sample,
        prefix: Latents | None = None,
    ) -> Recipe:
        """The recipe, with sampled z, of one image for each sample index; `draw` draws them.

        Image i of `pipe([caption] * n, seed=seed)` is that of index i.

        Args:
          caption: of all images.
          seed: together with an index it decides z and the noise of its image.
          indices: sample index of each image.
          sample: settings, from `override`.
          prefix: what each z must begin with.

        Raises:
          UserError: a caption or a prefix that is invalid or too long, or no indices.
        """
        captions = [caption] * len(indices)
        recipe, samples = self.recipe(captions, 1, seed, sample), []
        if self._batched.model.has_prior:
            # With a list of settings and prefixes one compiled function serves all values of both.
            options = {"sample": [sample] * len(indices), "prefix": [prefix] * len(indices)}
            samples = self.sample_latents(captions, seed=seed, indices=indices, **options)
        for row, index in zip(recipe["rows"], indices, strict=True):
            row["noise_indices"] = [int(index)]
        for row, index, one in zip(recipe["rows"], indices, samples, strict=False):
            row["latents_index"] = int(index)
            self._set_latents(row, one)
        return recipe

    def _set_latents(self, row: RowRecipe, one: SampledLatents) -> None:
        row["tokens"], row["problem"] = list(one.spelled(self.codec)), one.problem
        row["latents"] = one.latents.to_json() if one.latents else None

    def settings_of(self, recipe: Recipe) -> Sample:
        """The settings of a recipe of this model.

        Raises:
          UserError: it is of another model, or has settings that this one does not allow.
        """
        check_same_model(recipe, self._identity(sample := settings_in(recipe)))
        return self.override({n: getattr(sample, n) for n in SETTINGS})

    def _check_worse(self, sample: Sample) -> None:
        """Checks that the model has what autoguidance needs, before anything is sampled or compiled.

        Raises:
          UserError: autoguidance without the parameters of a worse model.
        """
        if _needs_worse(sample) and self.bad_params is None:
            raise user_error(
                "guidance = 'autoguidance' for a model that was loaded without a worse one",
                "another rule, or gamma = 1",
                "load the model by a config with config.sample.guidance = 'autoguidance'",
            )

    def _identity(self, sample: Sample) -> ModelRecipe:
        worse = _needs_worse(sample) and self.bad_params is not None
        return {
            "name": self.config.name,
            "step": self.step,
            **self._digits,
            "worse": self._worse if worse else None,
            "precision": self.config.model.precision,
        }

    @functools.cached_property
    def _digits(self) -> dict[str, str]:
        parts = {part: dataclasses.asdict(getattr(self.config, part)) for part in ("model", "diffusion", "latents")}
        # Where T5 and the vocabulary lie is no part of the model; what they hold is.
        parts["model"]["t5"] |= {"checkpoint": None, "vocabulary": self.codec.tokenizer.fingerprint}
        del parts["model"]["t5"]["attention"]  # younger than recipes, which it does not change
        return {"config": fingerprint(json.dumps(list(parts.values()))), "weights": weights_checksum(self.params)}

    @functools.cached_property
    def _worse(self) -> str:
        return weights_checksum(self.bad_params)

    def _editable(self, recipe: Recipe) -> tuple[RowRecipe, Latents]:
        """The row and the z of a recipe of one image with latents.

        Raises:
          UserError: it is none, or of another model.
        """
        row = one_image(recipe)
        self.settings_of(recipe)
        if not self._batched.model.has_prior or self.config.model.denoiser is None:
            raise user_error("an edit with a model without latents or images", "one with both", "use another model")
        z = self._latents_of(row).latents
        if z is None:
            found = f"latents that do not parse ({row.get('problem') or 'unknown reason'})"
            raise user_error(found, "latents that can be read", "take another image, or sample with grammar=True")
        return row, z

    def _edited(self, old: Latents, latents: Latents | None, given: dict[str, Any]) -> Latents:
        """z with other segments, as the prior knows it.

        Raises:
          UserError: latents that are invalid, too long, or of other segments.
        """
        if latents is not None and given:
            raise user_error(f"latents and {', '.join(given)}", "one of them", "leave out the other")
        if latents is not None and not isinstance(latents, Latents):
            raise user_error(f"latents of type {type(latents).__name__}", "Latents", "write kj.Latents(...)")
        edits = given if latents is None else {name: getattr(latents, name) for name in segments_of(latents)}
        for name in edits:
            if name not in self.codec.segments:
                raise user_error(f"{name} for a model of {', '.join(self.codec.segments)}", "its segments", "remove it")
        new = self.codec.snap(old.replace(**edits))
        self.latents_tokens(new)
        return new

    def _resampled(
        self, plans: Sequence[Plan], captions: Sequence[str], seed: int, indices: Sequence[int], sample: Sample
    ) -> list[Latents]:
        """The z of each plan, with its last segments sampled by the prior under the others."""
        check_seed(seed)
        self.caption_tokens(captions)
        z = [plan.z for plan in plans]
        rows = [i for i, plan in enumerate(plans) if plan.resampled]
        if not rows:
            return z
        prefix = [select(z[i], plans[i].kept) if plans[i].kept else None for i in rows]
        # With a list of settings one compiled function serves all their values.
        drawn = {"seed": seed, "indices": [indices[i] for i in rows], "sample": [sample] * len(rows), "prefix": prefix}
        for i, one in zip(rows, self.sample_latents([captions[i] for i in rows], **drawn), strict=True):
            if one.latents is None:
                raise user_error(f"resampled latents that do not parse ({one.problem})", "grammar=True", "leave it on")
            z[i] = one.latents
        return z

    def _draw_edit(
        self,
        recipe: Recipe,
        z: Latents,
        caption: str,
        edit: EditRecipe,
        messages: list[str],
        watch: Watch | None,
    ) -> Edited:
        before = self.draw(recipe, watch)
        (old,) = before.latents
        known = recipe["rows"][0].get("pixels")
        if known and known != before.recipe["rows"][0]["pixels"]:
            messages = [
                "the saved image was drawn on another machine or by other versions: last bits differ",
                *messages,
            ]
        after, same = before, z == old and caption == before.captions[0] and not edit["settings"]
        if same:
            messages = [*messages, "nothing was changed: the same image"]
        else:
            tokens, settings = self.latents_tokens(z), edit["settings"]
            edited = edited_recipe(before.recipe, caption=caption, tokens=tokens, z=z, settings=settings, edit=edit)
            # The settings may have turned autoguidance on or off, and with it the worse model.
            edited["model"] = edited["model"] | {"worse": self._identity(settings_in(edited))["worse"]}
            after = self.draw(edited, watch)
        return Edited(
            before=before.images[0][0],
            after=after.images[0][0],
            recipe=after.recipe,
            recipe_before=before.recipe,
            latents=z,
            latents_before=old,
            messages=messages,
        )

    def _latents_of(self, row: RowRecipe) -> SampledLatents | None:
        """The z of a row of a recipe; None for a baseline.

        Raises:
          UserError: a row without z, or whose tokens are not those of its latents, or of a baseline with z.
        """
        tokens, latents = row.get("tokens"), row.get("latents")
        if not self._batched.model.has_prior:
            if tokens or latents:
                raise user_error("a recipe with latents for a model without", "none", "use another model")
            return None
        z, ids = None, tuple(tokens or ())
        if latents is not None:
            z = self.codec.snap(Latents.from_json(latents))
            spelled = SampledLatents(tokens=ids, latents=z).spelled(self.codec) if ids else self.latents_tokens(z)
            if ids and spelled != ids:
                raise user_error(
                    "a recipe whose tokens are not those of its latents", "the same z", "edit a recipe by `edit`"
                )
            ids = spelled
        limit, vocab_size = 2 * self.config.latents.max_latents_tokens, self.codec.tokenizer.vocab_size
        # A prior of a short training may sample 0, padding, before eos: such a z does not parse, but draws an image.
        if not 0 < len(ids) <= limit or not all(0 <= token < vocab_size for token in ids):
            found = f"a recipe with {len(ids)} tokens of latents"
            raise user_error(found, f"1 to {limit}, ids 0..{vocab_size - 1}", "correct the recipe")
        return SampledLatents(tokens=ids, latents=z, problem=row.get("problem", ""))

    def _draw_again(
        self, row: RowRecipe, image: int, z: SampledLatents | None, keys: Keys, sample: Sample, watch: Watch | None
    ) -> tuple[Float[np.ndarray, "..."], Batch]:
        """One image of a row, and the batches in which it came out as the row remembers it, or the last tried."""
        spelled = pad_rows([z.tokens if z else ()], self.config.latents.max_latents_tokens)
        alone = self._batched.smallest
        ways: list[Batch] = [{"captions": [alone, 0], "images": [alone, 0], "tokens": spelled.shape[1]}]
        if (
            row.get("batch")
            and (known := row["batch"][image]) != ways[0]
            and self._may_draw_in(known, spelled.shape[1])
        ):
            ways.append(known)
        wanted = row["pixels"][image] if row.get("pixels") else None
        tokens = self.caption_tokens([row["caption"]])
        for way in ways if wanted else ways[::-1]:
            rows, place = way["captions"]
            repeated = tokens.repeat(rows, axis=0)
            encoded, bad = self._batched.encode(self.params, repeated), None
            if self.bad_params is not None:
                bad = self.bad_params, self._batched.encode(self.bad_params, repeated)
            wide = np.pad(spelled, ((0, rows - 1), (0, way["tokens"] - spelled.shape[1])), mode="edge")
            rows, own = way["images"]
            noise = keys[np.full(rows, image)]
            inputs = encoded, bad, np.full(rows, place), wide, noise, sample
            x = self._batched.sample_images(self.params, *inputs, watch=_row(watch, own))[own]
            if wanted in (None, *(_fingerprints(x[None]) or ())):
                break
        return x, way

    def _may_draw_in(self, batch: Batch, tokens: int) -> bool:
        """Whether these devices can hold such batches, and z fits into its width."""
        sizes = batch["captions"][0], batch["images"][0]
        fit = all(
            size <= max(self._batched.chunk, LARGEST_AGAIN) and size % self._batched.smallest == 0 for size in sizes
        )
        return fit and tokens <= batch["tokens"] <= round_up(2 * self.config.latents.max_latents_tokens, 16)

    # ------------------------------------------------------------------------------------------ arguments
    def override(self, overrides: dict[str, Any]) -> Sample:
        """config.sample with other fields, e.g. {"gamma": 3.0}, checked like a config.

        Raises:
          UserError: an override that is unknown or out of range.
        """
        _check_names(overrides, SETTINGS)
        values = dataclasses.asdict(self.config)
        return validate(values | {"sample": values["sample"] | overrides}).sample

    def compiled_for(self, sample: Sample) -> tuple[object, ...]:
        """What its compiled functions depend on besides the number of rows, as values whose str() tells them apart."""
        of = {name: getattr(sample, name) for name in COMPILED_IN} | {"guided": sample.gamma != 1}
        return self.config.model, self.config.diffusion, self.config.latents, jax.device_count(), of

    @property
    def chunk(self) -> int:
        """The largest batch, samples."""
        return self._batched.chunk

    def caption_tokens(self, captions: Sequence[str]) -> HostTokens:
        """Token ids of captions with eos, padded to the config's caption length.

        Raises:
          UserError: a caption is not text, or is too long.
        """
        return caption_tokens(captions, self.codec.tokenizer, self.config.data.max_caption_tokens)

    def latents_tokens(self, z: Latents) -> tuple[int, ...]:
        """Tokens of (maybe edited) latents, for `sample_images`.

        Raises:
          UserError: invalid, segments missing, or more than twice as long as the config's bucket.
        """
        return latents_tokens(z, self.codec, self.config.latents.max_latents_tokens)

    def _given(
        self,
        captions: list[str],
        seed: int,
        sample: Sample,
        latents: Latents | Sequence[Latents] | None,
        prefix: Latents | Sequence[Latents | None] | None,
    ) -> list[SampledLatents] | PriorInputs:
        """The given z of a call, or the inputs for sampling them; a baseline's z are empty."""
        if not self._batched.model.has_prior and (latents is not None or prefix is not None):
            raise user_error("latents for a model without", "none", "leave them out, or use another model")
        if latents is not None and prefix is not None:
            raise user_error("latents and prefix", "one of them", "leave out the other")
        if not self._batched.model.has_prior:
            return [SampledLatents(tokens=(), latents=None)] * len(captions)
        if latents is not None:
            each = _one_each("latents", latents, captions)
            return [SampledLatents(tokens=self.latents_tokens(z), latents=self.codec.snap(z)) for z in each]
        locked = None if prefix is None else _one_each("prefix", prefix, captions)
        return self._prior_inputs(seed, np.arange(len(captions)), sample, locked)

    def _prior_inputs(
        self, seed: int, indices: Int[np.ndarray, "b"], sample: Sample | list[Sample], prefix: list[Prefix] | None
    ) -> PriorInputs:
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
        return PriorInputs(keys=keys, per_row=per_row, constraint=constraint, settings=settings)

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

    # -------------------------------------------------------------------------------------------- batches
    def _sample(
        self, captions: Sequence[str], z: list[SampledLatents] | PriorInputs, each: int, keys: Keys, sample: Sample
    ) -> tuple[list[SampledLatents], Float[np.ndarray, "b ..."], list[Batch]]:
        """(z of each caption, `each` samples x of each, where each was drawn); captions are encoded once."""
        tokens, found, images, batches = self.caption_tokens(captions), [], [], []
        limit = self.config.latents.max_latents_tokens
        with progress("images", len(captions) * each, "img") as advance:
            for rows, real in self._batched.rows(len(captions), len(captions)):
                encoded, bad = self._batched.encode(self.params, tokens[rows]), None
                if self.bad_params is not None:
                    bad = self.bad_params, self._batched.encode(self.bad_params, tokens[rows])
                if isinstance(z, PriorInputs):
                    sampled = self._batched.sample_latents(self.params, encoded, rows, z)
                    here = [read_latents(row, self.codec) for row in sampled[:real]]
                else:
                    here = z[rows[0] : rows[0] + real]
                found += here
                spelled = pad_rows([one.spelled(self.codec) for one in here], limit)
                for local, fresh in self._batched.rows(real * each, len(captions) * each):
                    noise = keys[rows[0] * each + local]
                    inputs = encoded, bad, local // each, spelled, noise, sample
                    images.append(self._batched.sample_images(self.params, *inputs)[:fresh])
                    batches += [
                        {
                            "captions": [len(rows), int(one) // each],
                            "images": [len(local), i],
                            "tokens": spelled.shape[1],
                        }
                        for i, one in enumerate(local[:fresh])
                    ]
                    advance(fresh)
        return found, np.concatenate(images), batches


def _needs_worse(sample: Sample) -> bool:
    return sample.guidance == "autoguidance" and sample.gamma != 1


def _row(watch: Watch | None, row: int) -> Watch | None:
    """`watch` of one row of a batch."""
    return watch and (lambda done, of, x0: watch(done, of, x0[row]))


def _finite(x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    if not np.isfinite(x).all():
        raise FloatingPointError("samples are not finite; check the checkpoint, or lower gamma")
    return x


def _fingerprints(x: Float[np.ndarray, "k ..."]) -> list[str] | None:
    """That of each image's pixels; None for points."""
    return [fingerprint(str(image.shape), image.tobytes()) for image in pixels_of(x)] if x.ndim == 4 else None


def _some(captions: Sequence[str]) -> Sequence[str]:
    if isinstance(captions, str):  # each of its letters would be a caption
        raise user_error(f"captions = {captions!r:.40}", "a list of texts", "write it as [...]")
    if not len(captions):
        raise user_error("no captions", "at least one", "give some")
    return captions


def _indices(indices: Sequence[int] | None, captions: Sequence[str]) -> Int[np.ndarray, "b"]:
    numbers = range(len(captions)) if indices is None else indices
    _check_count("indices", numbers, captions)
    whole = numbers.tolist() if isinstance(numbers, np.ndarray | jax.Array) else numbers
    return np.asarray([check_index(number) for number in whole], np.int32)


def _check_chunk(chunk: int) -> None:
    if isinstance(chunk, bool) or not isinstance(chunk, Integral) or chunk < 1:
        raise user_error(f"chunk = {chunk!r:.40}", "at least 1, a whole number", "correct it")


def folder_of(path_or_name: str | Path) -> Path:
    """The folder of that path or, where there is none, of the bundled model of that name."""
    folder = Path(path_or_name).expanduser()
    return MODELS / str(path_or_name) if str(path_or_name) in BUNDLED and not folder.is_dir() else folder


def find_model(path_or_name: str | Path) -> Path:
    """The folder of a model, by its path or the name of a bundled one.

    Raises:
      UserError: there is none.
    """
    folder = folder_of(path_or_name)
    if not folder.is_dir():
        raise no_model(str(path_or_name))
    return folder


def _parted(changes: Mapping[str, Any], segments: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(segments that are set, settings) among the keywords of an edit."""
    settings = {name: value for name, value in changes.items() if name not in registry.names()}
    _check_names(settings, (*segments, *SETTINGS))
    return {n: v for n, v in changes.items() if n not in settings and v is not None}, settings


def _check_names(given: Iterable[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            expected = nearest(name, known) or f"one of {', '.join(known)}"
            raise user_error(f"unknown argument {name!r}", expected, "correct the name")


def _list_of(captions: str | Sequence[str]) -> list[str]:
    if isinstance(captions, str):
        return [captions]
    if not isinstance(captions, Iterable):
        raise user_error(f"captions = {captions!r:.40}", "a text, or a list of texts", "correct it")
    return list(captions)


def _one_each(name: str, given: Latents | Sequence[Latents | None], captions: list[str]) -> list[Latents | None]:
    if isinstance(given, str | Mapping) or not isinstance(given, Latents | Iterable):
        raise user_error(
            f"{name} of type {type(given).__name__}", "Latents, or a list of them", "write kj.Latents(...)"
        )
    each = [given] * len(captions) if isinstance(given, Latents) else list(given)
    _check_count(name, each, captions)
    for i, z in enumerate(each):
        if not isinstance(z, Latents) and (name == "latents" or z is not None):
            raise user_error(
                f"{name} {i} of type {type(z).__name__}", "Latents", "leave this caption out or write them"
            )
    return each


def _check_count(name: str, given: Sequence[Any], captions: Sequence[str]) -> None:
    if len(given) != len(captions):
        raise user_error(f"{len(given)} {name} for {len(captions)} captions", "one for each", "correct the list")
