"""Samples of a model beside those of its baseline, as docs/results/own-data.md shows them.

python docs/own_data_pictures.py --model=runs/mine --baseline=runs/baseline --out=samples.png

The rows are the captions of the model's grid. Both models draw from the same captions and the same noise. The latents
of Kaleido's samples are written beside the picture, samples.txt.
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw

from kaleido_jax.latents.grammar import serialize
from kaleido_jax.latents.render.layout import load_font, shorten
from kaleido_jax.sampling.pipeline import KaleidoPipeline

EACH = 4  # images of a caption from each model
CELL_PX, GAP_PX, BETWEEN_PX, MARGIN_PX = 128, 4, 20, 6
FONT_PX = 36  # the picture is read at about 390 px on a phone, where its letters are 13 px high
PAPER, INK, FAINT = (255, 255, 255), (20, 20, 24), (96, 98, 108)


def main() -> None:
    """Parses the flags, draws, and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="workdir of a model with latents")
    parser.add_argument("--baseline", type=Path, required=True, help="workdir of one without")
    parser.add_argument("--gamma", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="the .png file to write")
    flags = parser.parse_args()
    model, baseline = (KaleidoPipeline.from_pretrained(path) for path in (flags.model, flags.baseline))
    captions = list(model.config.sample.captions)
    each = [caption for caption in captions for _ in range(EACH)]
    outputs = [pipe(each, gamma=flags.gamma, seed=flags.seed) for pipe in (baseline, model)]
    segments = model.config.latents.segments
    said = ["does not parse" if z is None else serialize(z, segments) for z in outputs[1].latents]
    lines = (f"{caption}: {words}\n" for caption, words in zip(each, said, strict=True))
    flags.out.with_suffix(".txt").write_text("".join(lines), encoding="utf-8")
    images = [[row[0] for row in output.images] for output in outputs]
    sheet = picture(captions, ("without latents", "Kaleido"), images)
    # 256 colors, which make the file half as large; dithering would show in such small pictures.
    sheet.quantize(256, kmeans=10, dither=Image.Dither.NONE).save(flags.out, optimize=True)


def picture(captions: list[str], names: tuple[str, str], images: list[list[Image.Image]]) -> Image.Image:
    """A line for each caption: EACH images of the first model, then as many of the second."""
    font = load_font(FONT_PX)
    text_px = round(FONT_PX * 1.3)
    half = EACH * (CELL_PX + GAP_PX) - GAP_PX
    starts = (MARGIN_PX, MARGIN_PX + half + BETWEEN_PX)
    row_px = text_px + CELL_PX + 2 * GAP_PX
    sheet = Image.new("RGB", (starts[1] + half + MARGIN_PX, text_px + MARGIN_PX + len(captions) * row_px), PAPER)
    draw = ImageDraw.Draw(sheet)
    for start, name in zip(starts, names, strict=True):
        draw.text((start, MARGIN_PX), name, INK, font)
    for row, caption in enumerate(captions):
        top = text_px + MARGIN_PX + row * row_px
        draw.text((MARGIN_PX, top), shorten(caption, font, sheet.width - 2 * MARGIN_PX), FAINT, font)
        for start, drawn in zip(starts, images, strict=True):
            for column, image in enumerate(drawn[row * EACH : (row + 1) * EACH]):
                place = (start + column * (CELL_PX + GAP_PX), top + text_px)
                sheet.paste(image.resize((CELL_PX, CELL_PX), Image.Resampling.NEAREST), place)
    return sheet


if __name__ == "__main__":
    main()
