"""edit: a recipe and edits of its latents -> the image again from the same noise, before | after | difference."""

from pathlib import Path
from typing import Any

from kaleido_jax.errors import UserError, user_error
from kaleido_jax.runtime.devices import check_backend
from kaleido_jax.runtime.files import check_folder
from kaleido_jax.verbs.verb import OUTPUT, Flag, say

HELP = "an image's recipe and edits of its latents -> the image again, from the same noise; needs no config"
FLAGS = (
    Flag(
        name="recipe",
        value="FILE",
        help="a PNG that sample or edit wrote, or a JSON of one image",
        missing="name the picture to edit",
        kind=Path,
    ),
    OUTPUT,
    Flag(
        name="model",
        value="DIR",
        help="the workdir, the exported folder or the bundled model that drew it; not needed if the recipe names a "
        "bundled one",
    ),
    Flag(
        name="set",
        value="ADDRESS=VALUE",
        keyed=True,
        help='an edit: --set.text="..."; --set.bbox.0="(100,420,480,900)", whose phrase stays, or "red apple (100,420,'
        '480,900)"; --set.bbox.0.phrase="red apple"; --set.voken.3=17. An empty value removes an entry',
    ),
    Flag(name="caption", value="TEXT", help="another caption"),
    Flag(name="lock", value="NAMES", help="segments that must stay, with commas"),
    Flag(name="resample", value="NAMES", help="segments to sample anew, with commas; those behind them go along"),
    Flag(
        name="follow",
        value="yes|no",
        help="yes: what is behind the edited and locked segments is sampled anew; no: it is kept. Yes by default, "
        "unless --resample says what to sample, or the text of an emoji scene changes in the background alone",
        words=("yes", "no"),
    ),
    Flag(name="seed", value="N", help="of what is sampled anew; the noise stays", kind=int),
    Flag(name="sample", value="KEY=VALUE", keyed=True, help="a field of config.sample, e.g. --sample.gamma=3.0"),
)


def run(
    recipe: Path,
    output: Path,
    model: str | None,
    set: dict[str, str] | None,
    caption: str | None,
    lock: str | None,
    resample: str | None,
    follow: str | None,
    seed: int | None,
    sample: dict[str, str] | None,
) -> None:
    """Writes before.png, after.png with the new recipe, difference.png and strip.png; prints what may not fit."""
    settings = {key: _setting(key, text) for key, text in (sample or {}).items()}
    check_backend()
    from kaleido_jax.latents.address import assign
    from kaleido_jax.latents.types import Latents
    from kaleido_jax.sampling.editing import one_image, refuse_other_edit
    from kaleido_jax.sampling.pipeline import KaleidoPipeline
    from kaleido_jax.sampling.recipe import load_recipe

    loaded = load_recipe(recipe)
    check_folder(output, "--output")  # before anything is drawn
    refuse_other_edit(output, loaded)
    z, addresses = Latents.from_json(one_image(loaded).get("latents") or {}), set or {}
    for address, text in addresses.items():
        z = assign(z, address, text)
    edits = {name: getattr(z, name) for name in dict.fromkeys(address.split(".")[0] for address in addresses)}
    pipeline = KaleidoPipeline.from_pretrained(_model(model, loaded["model"]["name"]))
    edited = pipeline.edit(
        loaded,
        caption=caption,
        lock=_names(lock),
        resample=_names(resample),
        follow=None if follow is None else follow == "yes",
        seed=seed,
        **edits,
        **settings,
    )
    path = edited.save(output)
    for message in edited.messages:
        say(message.replace("follow=True", "--follow=yes").replace("follow=False", "--follow=no"))
    say(f"edited: {path}")


def _setting(key: str, text: str) -> Any:
    from kaleido_jax.config.load import parse_value

    try:
        return parse_value(f"sample.{key}", text)
    except UserError as error:
        raise UserError(str(error).replace("--config.sample.", "--sample.")) from error


def _names(names: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in names.split(",") if name.strip()) if names else ()


def _model(given: str | None, name: str) -> str | Path:
    """The model that was given, or the bundled one of this name."""
    from kaleido_jax.config.load import MODELS
    from kaleido_jax.sampling.pipeline import BUNDLED

    if given:
        return given
    if name not in BUNDLED:
        found = f"no --model, and the recipe is of {name!r:.60}"
        raise user_error(found, f"--model=DIR, or a recipe of {', '.join(BUNDLED)}", "name the model that drew it")
    return MODELS / name  # never a folder of that name here: a recipe may come from anybody
