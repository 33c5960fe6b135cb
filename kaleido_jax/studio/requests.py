"""What a page may ask for: the bodies of requests, checked for their form before they wait for the model.

Whether a caption, latents or settings fit the model is checked by the pipeline when their turn comes.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kaleido_jax.errors import user_error
from kaleido_jax.latents.types import Latents
from kaleido_jax.sampling.recipe import Recipe, load_recipe

# Settings of config.sample that a page may set; of these a compiled function depends on sampler and guidance alone.
SETTINGS = ("gamma", "num_steps", "sampler", "guidance", "guidance_interval", "temperature", "top_k", "top_p")
LIMITS = {
    "caption": 1_000,  # characters
    "text": 4_000,  # characters of a segment or a phrase
    "objects": 64,  # boxes or ellipses
    "variations": 8,
    "modes": 64,
    "suggestions": 1_000,
    "steps": [1, 1_000],
    "gamma": [0, 100],
    "seed": [0, 2**32 - 1],
    "request_bytes": 1_000_000,
    "recipe_bytes": 4_000_000,
}


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Images of a caption, each with a z of its own."""

    caption: str
    indices: tuple[int, ...]  # sample indices
    seed: int
    settings: dict[str, Any]
    keep: Latents | None  # what each z begins with


@dataclass(frozen=True, kw_only=True)
class Edit:
    """An edit of one image; the arguments are those of `pipe.edit`."""

    recipe: Recipe
    arguments: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Draw:
    """The images of a recipe again."""

    recipe: Recipe


@dataclass(frozen=True, kw_only=True)
class Modes:
    """What the prior says to a caption, without images."""

    caption: str
    count: int
    seed: int
    settings: dict[str, Any]


Request = Generate | Edit | Draw | Modes


def parse(name: str, body: bytes) -> Request:
    """The request of this name, one of PARSERS, from its JSON.

    Raises:
      UserError: no JSON, a field that is unknown, missing, of another type or out of range, or latents or a recipe
        that are not valid.
    """
    fields = _object(loads(body), "the request")
    return PARSERS[name](fields)


def loads(body: bytes) -> Any:
    """Strict JSON: finite numbers, no deep nesting.

    Raises:
      UserError: anything else.
    """

    def finite(number: str) -> float:
        if not math.isfinite(value := float(number)):
            raise user_error(f"the number {number:.40}", "finite numbers", "correct it")
        return value

    try:
        value = json.loads(body.decode("utf-8"), parse_constant=finite, parse_float=finite)
    except (ValueError, RecursionError) as error:
        raise user_error("a body that is no JSON", "an object in UTF-8", "correct the request") from error
    return value


def _generate(fields: dict[str, Any]) -> Generate:
    known = ("caption", "variations", "indices", "seed", "settings", "keep")
    _refuse_unknown(fields, known)
    variations = _whole(fields, "variations", 1, LIMITS["variations"], 1)
    indices = fields.get("indices")
    if indices is None:
        indices = list(range(variations))
    if not isinstance(indices, list) or not 0 < len(indices) <= LIMITS["variations"]:
        raise user_error("indices", f"a list of 1 to {LIMITS['variations']} sample indices", "correct it")
    for index in indices:
        _whole({"an index": index}, "an index", 0, 2**31 - 1)
    keep = _latents(fields.get("keep") or {}, "keep")
    return Generate(
        caption=_text(fields, "caption", LIMITS["caption"]),
        indices=tuple(indices),
        seed=_whole(fields, "seed", *LIMITS["seed"], 0),
        settings=_settings(fields.get("settings")),
        keep=Latents(**keep) if keep else None,
    )


def _edit(fields: dict[str, Any]) -> Edit:
    known = ("recipe", "caption", "latents", "lock", "resample", "follow", "seed", "settings")
    _refuse_unknown(fields, known)
    arguments: dict[str, Any] = {
        **_latents(fields.get("latents") or {}, "latents"),
        **_settings(fields.get("settings")),
        "lock": _names(fields, "lock"),
        "resample": _names(fields, "resample"),
    }
    if fields.get("caption") is not None:
        arguments["caption"] = _text(fields, "caption", LIMITS["caption"])
    if fields.get("seed") is not None:
        arguments["seed"] = _whole(fields, "seed", *LIMITS["seed"])
    if (follow := fields.get("follow")) is not None:
        if not isinstance(follow, bool):
            raise user_error(f"follow = {follow!r:.40}", "true, false or null", "correct it")
        arguments["follow"] = follow
    return Edit(recipe=_recipe(fields), arguments=arguments)


def _draw(fields: dict[str, Any]) -> Draw:
    _refuse_unknown(fields, ("recipe",))
    recipe = _recipe(fields)
    images = sum(len(row["noise_indices"]) for row in recipe["rows"])
    if images > LIMITS["variations"]:
        raise user_error(f"a recipe of {images} images", f"at most {LIMITS['variations']}", "take that of one picture")
    return Draw(recipe=recipe)


def _modes(fields: dict[str, Any]) -> Modes:
    _refuse_unknown(fields, ("caption", "count", "seed", "settings"))
    return Modes(
        caption=_text(fields, "caption", LIMITS["caption"]),
        count=_whole(fields, "count", 1, LIMITS["modes"], 32),
        seed=_whole(fields, "seed", *LIMITS["seed"], 0),
        settings=_settings(fields.get("settings")),
    )


PARSERS: Mapping[str, Callable[[dict[str, Any]], Request]] = {
    "generate": _generate,
    "edit": _edit,
    "draw": _draw,
    "modes": _modes,
}


# -------------------------------------------------------------------------------------------------------- fields
def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise user_error(f"{name} of type {type(value).__name__}", "an object", "correct the request")
    return value


def _refuse_unknown(fields: dict[str, Any], known: Sequence[str]) -> None:
    for name in fields:
        if name not in known:
            raise user_error(f"the field {name!r:.40}", f"one of {', '.join(known)}", "remove it")


def _text(fields: dict[str, Any], name: str, longest: int) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise user_error(f"{name} of type {type(value).__name__}", "text", "correct the request")
    if len(value) > longest:
        raise user_error(f"{name} of {len(value):,} characters", f"at most {longest:,}", "shorten it")
    return value


def _whole(fields: dict[str, Any], name: str, least: int, most: int, default: int | None = None) -> int:
    value = fields.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise user_error(f"{name} = {value!r:.40}", f"a whole number from {least} to {most}", "correct it")
    return value


def _names(fields: dict[str, Any], name: str) -> tuple[str, ...]:
    value = fields.get(name) or []
    if not isinstance(value, list) or len(value) > 16 or not all(isinstance(one, str) for one in value):
        raise user_error(name, "a list of segments", "correct it")
    return tuple(value)


def _settings(value: Any) -> dict[str, Any]:
    settings = _object({} if value is None else value, "settings")
    _refuse_unknown(settings, SETTINGS)
    if "num_steps" in settings:
        _whole(settings, "num_steps", *LIMITS["steps"])
    return {name: tuple(one) if isinstance(one, list) else one for name, one in settings.items()}


def _latents(value: Any, name: str) -> dict[str, Any]:
    """Segments of a JSON z as readable values, by name."""
    fields = _object(value, name)
    for segment, one in fields.items():
        if segment == "voken":  # a model may have any number of them; z that are too long are refused later
            continue
        if isinstance(one, list) and len(one) > LIMITS["objects"]:
            raise user_error(f"{segment} of {len(one)} entries", f"at most {LIMITS['objects']}", "remove some")
        if len(json.dumps(one)) > LIMITS["text"] + 200 * LIMITS["objects"]:
            raise user_error(f"{segment} of {len(json.dumps(one)):,} characters", "less", "shorten it")
    z = Latents.from_json(fields)
    return {segment: getattr(z, segment) for segment in fields if getattr(z, segment) is not None}


def _recipe(fields: dict[str, Any]) -> Recipe:
    return load_recipe(_object(fields.get("recipe"), "recipe"))
