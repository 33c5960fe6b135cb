"""Visual tokenizer for the voken segment: our quantizer over a feature of the image, or SEED (seed.py)."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kaleido_jax.annotate.annotator import Annotator, Failure, Sees
from kaleido_jax.annotate.vokens.features import Feature, open_feature
from kaleido_jax.annotate.vokens.quality import quality
from kaleido_jax.annotate.vokens.quantizer import Quantizer, fit_quantizer, kind_of, load_quantizer, save_quantizer
from kaleido_jax.config.schema import Annotate
from kaleido_jax.data.sources.base import Example, Source
from kaleido_jax.errors import user_error
from kaleido_jax.latents.types import Latents

log = logging.getLogger(__name__)

OtherExamples = Literal["refuse", "keep", "fit"]

_FIT_SEED = 0  # not the experiment's: the same images give the same quantizer


@dataclass(frozen=True, kw_only=True)
class QuantizerTokenizer:
    """The annotator of the voken segment: feature -> codes, one image at a time."""

    feature: Feature
    quantizer: Quantizer
    segments: tuple[str, ...] = ("voken",)
    needs: tuple[str, ...] = ()
    sees: Sees = "record"

    @property
    def metadata(self) -> dict[str, str]:
        """Provenance; `version` changes with any number of the quantizer."""
        return {
            "model": "quantizer",
            "version": self.quantizer.fingerprint,
            "quantizer": kind_of(self.quantizer),
            "feature": self.feature.name,
            "feature_version": self.feature.version,
        }

    def __call__(self, examples: Sequence[Example], so_far: Sequence[Latents]) -> list[Latents | Failure]:
        """Latents with vokens_per_image vokens, each 0..codebook_size-1; it never fails for one image."""
        # Row by row: a matrix product may round differently with the number of rows.
        rows = (self.quantizer.encode(self.feature([example.image]))[0] for example in examples)
        return [Latents(voken=tuple(int(code) for code in row)) for row in rows]


def open_voken(
    config: Annotate,
    *,
    path: Path,
    source: dict[str, Any],
    train: Source,
    image_size: int,
    vokens_per_image: int,
    codebook_size: int,
    other_examples: OtherExamples = "refuse",
) -> Annotator:
    """The annotator that config.voken names.

    If `path` does not exist yet, its quantizer is fitted, or taken from config.voken.model: the vokens of a second data
    set, or of another resolution, then mean what a trained prior knows.

    Args:
      config: the group annotate.
      path: of quantizer.safetensors; SEED does not need it.
      source: identifies the data: "name", and "examples" that changes with them; stored in the file, and a file for
        other data is refused.
      train: training examples with their square crops.
      image_size: px of these images; stored in the file.
      vokens_per_image: config.latents.vokens_per_image.
      codebook_size: the most values that a token may have (config.latents.codebook_size).
      other_examples: what to do with a file that was fitted on other examples: refuse it, keep it since there are only
        more of them, or fit it anew since no record was made with it.

    Raises:
      UserError: weights are missing or unsuitable, too few training images, or another quantizer at `path`.
    """
    settings = config.voken
    if settings.kind == "seed":
        from kaleido_jax.annotate.vokens.seed import open_seed

        return open_seed(config, vokens_per_image=vokens_per_image, codebook_size=codebook_size)
    feature = open_feature(settings.feature, settings.feature_model)
    quantizer = fit_or_load(
        path,
        source=source,
        image_size=image_size,
        vokens_per_image=vokens_per_image,
        codebook_size=codebook_size,
        fit_examples=settings.fit_examples,
        feature=feature,
        kind=settings.quantizer,
        train=train,
        given=Path(settings.model).expanduser() if settings.model else None,
        other_examples=other_examples,
    )
    return QuantizerTokenizer(feature=feature, quantizer=quantizer)


def fit_or_load(
    path: Path,
    *,
    source: dict[str, Any],
    image_size: int,
    vokens_per_image: int,
    codebook_size: int,
    fit_examples: int,
    feature: Feature,
    kind: str,
    train: Source,
    given: Path | None = None,
    other_examples: OtherExamples = "refuse",
) -> Quantizer:
    """The quantizer at `path`; if it does not exist, `given` or one fitted on training images is stored there.

    Args:
      path: of the safetensors file.
      source: identifies the images, as JSON.
      image_size: px of the images.
      vokens_per_image: tokens per image.
      codebook_size: the most values of a token.
      fit_examples: images to fit on, spread evenly over `train`; all if there are fewer.
      feature: what the quantizer quantizes.
      kind: "residual" or "fsq".
      train: examples to fit on.
      given: file of a quantizer that was fitted before, of the same tokens, codebook, feature and kind.
      other_examples: as of open_voken.

    Raises:
      UserError: the one at `path` is damaged or was fitted with other arguments, the given one is missing, damaged or
        of other tokens, or there are too few images.
    """
    wanted = {
        "source": source,
        "image_size": image_size,
        "vokens_per_image": vokens_per_image,
        "codebook_size": codebook_size,
        "fit_examples": fit_examples,
        "feature": feature.name,
        "feature_version": feature.version,
        "quantizer": kind,
    }
    known = _given(given, wanted) if given else None
    if known:
        wanted["given"] = known.fingerprint
    if path.exists() and not (other_examples == "fit" and load_quantizer(path)[1].get("source") != source):
        return _stored(path, wanted, other_examples)
    quantizer = known
    if quantizer is None:
        count = min(fit_examples, len(train))
        # Spread, since many sources are sorted by class.
        features = feature(train[i * len(train) // count].image for i in range(count))
        quantizer = fit_quantizer(
            features, kind=kind, vokens_per_image=vokens_per_image, codebook_size=codebook_size, seed=_FIT_SEED
        )
        explained = quality(quantizer, features)["explained_variance"][-1]
        log.info("quantizer: explains %.1f %% of the variance", 100 * explained)
    save_quantizer(quantizer, path, wanted)
    return quantizer


def _stored(path: Path, wanted: dict[str, Any], other_examples: OtherExamples) -> Quantizer:
    """The quantizer that an earlier start of this job stored."""
    quantizer, fitted_for = load_quantizer(path)
    found, expected = _differing(*(_flat(of, other_examples) for of in (fitted_for, wanted)))
    if found:
        do = "use another --workdir, or delete this quantizer and the records"
        raise user_error(f"{path} was fitted for {found}", expected, do)
    return quantizer


def _flat(fitted_for: dict[str, Any], other_examples: OtherExamples) -> dict[str, Any]:
    source = {f"source.{key}": value for key, value in fitted_for.get("source", {}).items()}
    if other_examples != "refuse":
        source.pop("source.examples", None)
    return {**source, **{key: value for key, value in fitted_for.items() if key != "source"}}


def _differing(found: dict[str, Any], expected: dict[str, Any]) -> tuple[str, str]:
    """ "name value, ..." of what is different, on both sides; ("", "") if nothing is."""
    names = [name for name in {**expected, **found} if found.get(name) != expected.get(name)]
    return tuple(", ".join(f"{name} {of.get(name, 'none')}" for name in names) for of in (found, expected))


def _given(path: Path, wanted: dict[str, Any]) -> Quantizer:
    """The quantizer of another job, if its tokens are of the form that this one wants."""
    quantizer, fitted_for = load_quantizer(path)
    of_tokens = ("vokens_per_image", "codebook_size", "feature", "feature_version", "quantizer")
    found, expected = _differing(*({name: of.get(name) for name in of_tokens} for of in (fitted_for, wanted)))
    if found:
        do = "change these fields, or give another quantizer"
        raise user_error(f"config.annotate.voken.model: {path} of {found}", expected, do)
    return quantizer
