"""Three edits of one picture, each of the one before: another word for the sprite, a moved box, another background.

    python examples/edit_chain.py --out=DIR [--model=emoji-tiny] [--caption=fruit] [--seed=0] ...

Writes DIR/chain.png, one column for each picture: above it what was edited, below it box and ellipse of its latents;
and DIR/chain.json, the recipe of the last picture, whose history has all edits.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from kaleido_jax.data.scene_words import said_by, text_of
from kaleido_jax.data.sources.emoji import BACKGROUNDS, KINDS, SPRITE_NAMES
from kaleido_jax.errors import UserError, user_error
from kaleido_jax.latents.address import assign
from kaleido_jax.latents.render.image import render_outlines
from kaleido_jax.latents.types import Latents
from kaleido_jax.main import start_logging
from kaleido_jax.runtime.files import make_folder, write_atomically
from kaleido_jax.runtime.xla_flags import keep_memory, set_cpu_flag
from kaleido_jax.sampling.pipeline import KaleidoPipeline
from kaleido_jax.verbs.verb import say

# 1080 px wide, which is read at about 390 on a phone.
WIDTH, MARGIN, FONT_PX = 1080, 20, 28
PAPER, INK, FAINT = (255, 255, 255), (20, 20, 24), (96, 98, 108)


def edits(z: Latents, sprite: str, box: str, background: str) -> list[tuple[tuple[str, str], str]]:
    """(what stands above its picture in two lines, address=value) of the three edits of a z of one sprite.

    Raises:
      UserError: its text is not one of the emoji scenes.
    """
    said = said_by(z.text or "")
    if said is None:
        raise user_error(f"the text {z.text!r:.60}", "one of the emoji scenes", "take another model or caption")
    named = replace(said, name=sprite)
    return [
        ((f"text: {said.name}", f"to {sprite}"), f"text={text_of(named)}"),
        (("bbox: moved", f"to {box}"), f"bbox.0={box}"),
        (
            (f"text: on {said.background}", f"to {background}"),
            f"text={text_of(replace(named, background=background))}",
        ),
    ]


def chain(
    pipeline: KaleidoPipeline, caption: str, seed: int, wanted: Sequence[str]
) -> tuple[list[Any], dict[str, Any]]:
    """The columns (title, picture, latents) of a chain of edits, and the recipe of the last.

    Raises:
      UserError: latents that cannot be edited so.
    """
    out = pipeline(caption, seed=seed)
    recipe, z = out.recipe_of(0, 0), out.latents[0]
    columns = [((f'"{caption}"', "sampled"), out.images[0][0], z)]
    for title, edit in edits(z, *wanted):
        address, text = edit.split("=", 1)
        name = address.split(".")[0]
        edited = pipeline.edit(recipe, **{name: getattr(assign(z, address, text), name)})
        for message in edited.messages:
            say(f"{' '.join(title)}: {message}")
        recipe, z = edited.recipe, edited.latents
        columns.append((title, edited.after, z))
    return columns, recipe


def picture(columns: Sequence[tuple[tuple[str, str], Image.Image, Latents]]) -> Image.Image:
    """The columns beside each other: title, picture, and the picture with box and ellipse."""
    side = (WIDTH - MARGIN * (len(columns) + 1)) // len(columns)
    step = round(1.3 * FONT_PX)
    top = MARGIN + 2 * step + MARGIN // 2
    sheet = Image.new("RGB", (WIDTH, top + 2 * (side + MARGIN)), PAPER)
    ink = ImageDraw.Draw(sheet)
    for i, (lines, image, z) in enumerate(columns):
        left = MARGIN + i * (side + MARGIN)
        for j, line in enumerate(lines):
            size = FONT_PX
            while ink.textlength(line, font=ImageFont.load_default(size)) > side:
                size -= 1
            middle = MARGIN + j * step + step / 2
            ink.text((left, middle), line, font=ImageFont.load_default(size), fill=(FAINT, INK)[j], anchor="lm")
        large = image.resize((side, side), Image.Resampling.BICUBIC)
        sheet.paste(large, (left, top))
        sheet.paste(render_outlines(large, z), (left, top + side + MARGIN))
    return sheet


def main(argv: list[str]) -> None:
    """Parses the flags, draws, and prints what each edit did to the other segments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--model", default="emoji-tiny", help="a workdir, an exported folder or a bundled model")
    parser.add_argument("--caption", default=KINDS[0], choices=KINDS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sprite", default="pineapple", choices=SPRITE_NAMES, help="the new word of the sprite")
    parser.add_argument("--box", default="(40,360,410,970)", help="where the box is moved to, 0..1000")
    parser.add_argument("--background", default="blue", choices=BACKGROUNDS, help="the new word of the background")
    flags = parser.parse_args(argv)
    set_cpu_flag()  # before jax starts its backend
    keep_memory()
    start_logging()
    wanted = (flags.sprite, flags.box, flags.background)
    columns, recipe = chain(KaleidoPipeline.from_pretrained(flags.model), flags.caption, flags.seed, wanted)
    folder = make_folder(flags.out.expanduser(), "--out")
    write_atomically(folder / "chain.json", json.dumps(recipe, indent=2).encode())
    picture(columns).save(folder / "chain.png")
    say(f"picture: {folder / 'chain.png'}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"edit_chain: error: {error}")
