"""Recipe: everything that reproduces some images, as JSON; made by a call, checked when it is read back."""

import io
import json
import os
import types
import typing
import warnings
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

from PIL import Image

from kaleido_jax.config.fields import Range, build, expand, hints_of
from kaleido_jax.config.schema import Sample
from kaleido_jax.errors import UserError, nearest, user_error
from kaleido_jax.latents.types import Latents
from kaleido_jax.latents.validity import LatentsError
from kaleido_jax.runtime.files import fingerprint
from kaleido_jax.sampling.batched import SETTINGS

FORMAT = 1  # raise it when a field gets another meaning; older recipes are then refused by their number
CHUNK = "kaleido_jax"  # keyword of the PNG text chunk that holds the recipe
SAVED = "a PNG or JSON that kaleido_jax saved"
# Limits of what is read, far above what is written: 2**26 characters are those of 7,000 captions with the longest z.
LARGEST_FILE, LARGEST_RECIPE, LARGEST_LATENTS = 2**28, 2**26, 2**16  # bytes; characters of JSON
LARGEST_IMAGE_PX, LONGEST_LIST, LONGEST_TEXT, LONGEST_MESSAGE = 2**26, 2**16, 2**16, 500

_Index = Annotated[int, Range(0, 2**31 - 1)]
_Seed = Annotated[int, Range(0, 2**32 - 1)]


class ModelRecipe(TypedDict):
    """Which model it was; no paths."""

    name: str  # config.name
    step: _Index  # of the checkpoint
    config: str  # fingerprint of the networks, the process, the latents and the vocabulary
    weights: str  # checksum of every parameter
    worse: str | None  # that of the worse model, if autoguidance was used
    precision: str  # of the networks' computing


class Batch(TypedDict):
    """The batches in which an image was drawn: sums of floats may depend on their sizes and the place in them."""

    captions: list[_Index]  # (rows, which one) where the caption was encoded
    images: list[_Index]  # (rows, which one) where the image was drawn
    tokens: _Index  # width of z


class RowRecipe(TypedDict):
    """One caption with its latents and images; the lists have one entry for each image."""

    caption: str
    latents_index: NotRequired[_Index | None]  # with which z was sampled; None = z was given, or the model has no z
    tokens: NotRequired[list[_Index] | None]  # of z; they also reproduce a z that does not parse; None for a baseline
    latents: NotRequired[dict[str, Any] | None]  # z in JSON; None if it does not parse, or for a baseline
    problem: NotRequired[str]  # why it does not parse
    noise_indices: list[_Index]  # sample index of the noise
    pixels: NotRequired[list[str] | None]  # fingerprints, by which a repetition is recognized; None for points
    batch: NotRequired[list[Batch] | None]
    files: NotRequired[list[str]]  # names of the files, for people


class EditRecipe(TypedDict):
    """One edit of an image: what was done to z or to the settings."""

    of: str  # fingerprint of the recipe that was edited
    changed: list[str]  # segments that were given, and "caption"
    locked: list[str]  # segments that had to stay
    resampled: list[str]  # segments that were sampled anew
    seed: _Seed | None  # of that sampling, whose sample index is the image's
    settings: dict[str, Any]  # fields of config.sample that were set
    before: dict[str, Any]  # JSON of the segments that differ now, as they were, and of the caption


class Recipe(TypedDict):
    """Everything that reproduces some images; the recipe of one image has one row with one noise index."""

    format: int
    model: ModelRecipe
    seed: _Seed
    sample: dict[str, Any]  # fields of config.sample: sampler, steps, guidance, threshold, ...
    rows: list[RowRecipe]
    history: list[EditRecipe]  # the earliest first


def new_recipe(
    model: ModelRecipe, captions: Sequence[str], *, images_per_caption: int, seed: int, sample: Sample, has_z: bool
) -> Recipe:
    """The recipe of a call before its latents are known; `has_z` says whether they will be sampled.

    Raises:
      UserError: no captions, or a number out of range.
    """
    if not captions:
        raise user_error("no captions", "at least one", "give some")
    images_per_caption = _whole("images_per_caption", images_per_caption, 1, 2**31 - 1)
    seed = check_seed(seed)
    rows: list[RowRecipe] = [
        {
            "caption": caption,
            "latents_index": i if has_z else None,
            "tokens": None,
            "latents": None,
            "problem": "",
            "noise_indices": list(range(i * images_per_caption, (i + 1) * images_per_caption)),
            "pixels": None,
            "batch": None,
        }
        for i, caption in enumerate(captions)
    ]
    return {
        "format": FORMAT,
        "model": model,
        "seed": seed,
        "sample": settings_json(sample),
        "rows": rows,
        "history": [],
    }


def check_seed(seed: int) -> int:
    """The seed as an int, as JSON wants it; raises UserError unless it is a whole number 0..2**32-1."""
    return _whole("seed", seed, 0, 2**32 - 1)


def check_index(index: int) -> int:
    """A sample index as an int; raises UserError unless it is a whole number 0..2**31-1."""
    return _whole("a sample index", index, 0, 2**31 - 1)


def _whole(name: str, value: Any, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or not least <= value <= most:
        raise user_error(f"{name} = {value!r:.40}", f"a whole number from {least} to {most}", "correct it")
    return int(value)


def recipe_fingerprint(recipe: Recipe) -> str:
    """16 hex digits of what decides the images of a recipe: not the batches, the files and the history."""
    rows = [[row["caption"], row.get("tokens"), row.get("latents"), row["noise_indices"]] for row in recipe["rows"]]
    return fingerprint(json.dumps([recipe["model"], recipe["seed"], recipe["sample"], rows], sort_keys=True))


def settings_in(recipe: Recipe) -> Sample:
    """The settings of a recipe; a field that is younger than the recipe has its default.

    Raises:
      UserError: an unknown setting, or one with a value that is not allowed.
    """
    for name in recipe["sample"]:
        if name not in SETTINGS:
            near = nearest(name, SETTINGS)
            expected = f"{near!r}" if near else f"one of {', '.join(SETTINGS)}"
            raise user_error(f"the unknown setting {name!r:.40}", expected, "correct or remove it")
    # Which checkpoint the worse model was is no setting; its weights are in the recipe.
    return build(Sample, {"autoguidance_step": 1} | recipe["sample"], "sample")


def settings_json(sample: Sample) -> dict[str, Any]:
    """Settings as a recipe holds them: all of them, as JSON, in one order."""
    return json.loads(json.dumps({name: getattr(sample, name) for name in SETTINGS}))


def check_same_model(recipe: Recipe, model: ModelRecipe) -> None:
    """Checks that a recipe is of this model.

    Raises:
      UserError: its weights or config are others.
    """
    theirs = recipe["model"]
    if all(theirs[part] == model[part] for part in ("weights", "config", "worse")):
        return
    if theirs["weights"] != model["weights"]:
        part, do = "weights", "load the model of the recipe; exporting in less precision than float32 makes another"
    elif theirs["config"] != model["config"]:
        part, do = "config", "load the model of the recipe with its own config"
    else:
        part, do = "worse", "load it with the autoguidance_step and autoguidance_workdir of the recipe's model"
    name = "worse model" if part == "worse" else part
    of, this = (f"{m['name']!r:.60} ({name} {m[part]!s:.16}, step {m['step']})" for m in (theirs, model))
    raise user_error(f"recipe of {of}, this is {this}", "the same model", do)


# ------------------------------------------------------------------------------------------- reading
def load_recipe(source: str | Path | bytes | Mapping[str, Any]) -> Recipe:
    """The recipe inside a saved PNG or a JSON, or a given one, checked; nothing in it is used as a path.

    Its settings are completed: those that are younger than the recipe have their defaults, and numbers their types.

    Args:
      source: a path, the content of such a file, or a recipe as a mapping, which is copied.

    Raises:
      UserError: another type, no such file, one without a recipe, one that is too large, or a recipe of another form:
        a wrong type, a number out of range, an unknown field, latents or settings that are not valid.
    """
    if isinstance(source, Mapping):
        return _checked(source, "the recipe")
    if not isinstance(source, str | os.PathLike | bytes):
        found = f"a recipe of type {type(source).__name__}"
        raise user_error(found, "a recipe, or the path of one", "give e.g. `recipe_of(0, 0)` of an output")
    path = None if isinstance(source, bytes) else Path(expand(str(source), "recipe"))
    name = "the file" if path is None else str(path) if len(str(path)) < 200 else f"{str(path)[:200]}..."
    try:
        content = source if path is None else _content_of(path)
        value = json.loads(_text_in(content, name), parse_constant=_not_finite)
    except RecursionError as error:
        raise user_error(f"{name} nests too deeply", SAVED, "name another file") from error
    # PIL raises SyntaxError for a broken PNG; OverflowError and struct's errors for some others.
    except (OSError, ValueError, SyntaxError, OverflowError, EOFError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or "damaged"
        raise user_error(f"{name!r:.220} cannot be read ({reason})", SAVED, "name another file") from error
    if not isinstance(value, dict) or "rows" not in value:
        raise user_error(f"{name} holds no recipe", SAVED, "name another file")
    return _checked(value, name)


def _content_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(LARGEST_FILE + 1) if path.is_file() else b""  # not of a device without an end


def _text_in(content: bytes, name: str) -> str:
    """The JSON text that a file is, or that is in the text chunk of a PNG; "null" if that has none."""
    if len(content) > LARGEST_FILE:
        raise user_error(f"{name} of more than {LARGEST_FILE:,} bytes", SAVED, "name another file")
    if not content.startswith(b"\x89PNG"):
        if len(content) > LARGEST_RECIPE:
            raise _too_large(name, len(content))
        return content.decode("utf-8-sig")
    quiet = warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning)
    with quiet, Image.open(io.BytesIO(content)) as image:
        if image.width * image.height > LARGEST_IMAGE_PX:
            found = f"{name} of {image.width} x {image.height} px"
            raise user_error(found, f"at most {LARGEST_IMAGE_PX:,} px", "name another file")
        image.load()  # the text may also come after the pixels
        return str(image.info.get(CHUNK, "null"))


def _not_finite(constant: str) -> None:
    raise user_error(f"a recipe with the number {constant}", "finite numbers", "correct it")


def _too_large(name: str, size: int) -> UserError:
    return user_error(
        f"{name} with a recipe of {size:,} characters", f"at most {LARGEST_RECIPE:,}", "name another file"
    )


def _checked(value: Mapping[str, Any], name: str) -> Recipe:
    try:
        text = json.dumps(dict(value), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:80]
        raise user_error(f"{name} is no JSON ({reason})", "plain values, finite numbers", "correct it") from error
    if len(text) > LARGEST_RECIPE:
        raise _too_large(name, len(text))
    recipe = json.loads(text)
    if recipe.get("format", FORMAT) != FORMAT:
        found = f"{name} with a recipe of format {recipe['format']!r:.20}"
        raise user_error(found, f"format {FORMAT}", "read it with the version of kaleido_jax that wrote it")
    _check_type(Recipe, recipe, f"{name}: recipe")
    try:
        _check_content(recipe)
        # A browser writes 4 for 4.0, and an older recipe lacks younger settings: one picture has one fingerprint.
        recipe["sample"] = settings_json(settings_in(recipe))
    except UserError as error:
        raise type(error)(f"{name}: {error}"[:LONGEST_MESSAGE]) from error
    return recipe


def _check_type(hint: Any, value: Any, path: str) -> None:
    """Checks a JSON value against one of the types above, in one line for the first that is wrong."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):  # X | None
        hint = next(one for one in typing.get_args(hint) if (one is type(None)) == (value is None))
        return None if value is None else _check_type(hint, value, path)
    if typing.is_typeddict(hint):
        return _check_fields(hint, value, path)
    allowed = getattr(hint, "__metadata__", ())
    if allowed:
        hint = typing.get_args(hint)[0]
    bare = typing.get_origin(hint) or hint
    if not isinstance(value, bare) or isinstance(value, bool):
        raise user_error(f"{path} of type {type(value).__name__}", bare.__name__, "correct it")
    if allowed and value not in allowed[0]:
        raise user_error(f"{path} = {value!r:.40}", str(allowed[0]), "correct it")
    if isinstance(value, str | list) and len(value) > (most := LONGEST_TEXT if bare is str else LONGEST_LIST):
        raise user_error(f"{path} of length {len(value):,}", f"at most {most:,}", "shorten it")
    if bare is list:
        for i, item in enumerate(value):
            _check_type(typing.get_args(hint)[0], item, f"{path}[{i}]")
    return None


def _check_fields(hint: Any, value: Any, path: str) -> None:
    if not isinstance(value, dict):
        raise user_error(f"{path} of type {type(value).__name__}", "an object", "correct it")
    hints = {
        name: typing.get_args(one)[0] if typing.get_origin(one) is NotRequired else one
        for name, one in hints_of(hint).items()
    }
    for key in value:
        if key not in hints:
            near = nearest(key, hints)
            expected = f"{near!r}" if near else f"one of {', '.join(hints)}"
            raise user_error(f"{path} with the unknown field {key!r:.40}", expected, "correct or remove it")
    missing = sorted(hint.__required_keys__ - value.keys())
    if missing:
        raise user_error(f"{path} without {', '.join(missing)}", SAVED, "name another file")
    for key, item in value.items():
        _check_type(hints[key], item, f"{path}.{key}")


def _check_content(recipe: Recipe) -> None:
    """What types do not say: lists of one length, latents."""
    rows = recipe["rows"]
    if not rows:
        raise user_error("a recipe without images", "at least one", "name another file")
    for i, row in enumerate(rows):
        count = len(row["noise_indices"])
        if not count or count != len(rows[0]["noise_indices"]):
            raise user_error(f"{count} images of row {i}", "as many of each row, at least one", "correct the recipe")
        for name in ("pixels", "batch"):
            if row.get(name) is not None and len(row[name]) != count:
                raise user_error(f"{name} of {len(row[name])} images in row {i}", f"{count}", "correct or remove them")
        for batch in row.get("batch") or ():
            for pair in (batch["captions"], batch["images"]):
                if len(pair) != 2 or not pair[1] < pair[0]:
                    raise user_error(f"a batch {pair!r:.40}", "[rows, which one]", "correct the recipe")
        if row.get("latents") is not None:
            _check_latents(row["latents"])
    for edit in recipe["history"]:
        _check_latents({name: value for name, value in edit["before"].items() if name != "caption"})


def _check_latents(value: dict[str, Any]) -> None:
    length = len(json.dumps(value))
    if length > LARGEST_LATENTS:
        raise LatentsError(f"latents of {length:,} characters; expected at most {LARGEST_LATENTS:,}; shorten them")
    Latents.from_json(value)
