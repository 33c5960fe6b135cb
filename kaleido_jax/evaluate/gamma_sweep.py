"""The paper's claim with the truth known: guidance makes a baseline lose modes, latents keep them.

Models are measured at several gamma, each result is stored as soon as it is there, and one table and one picture show
them side by side.
"""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kaleido_jax import array_types as at
from kaleido_jax.data.sources.emoji import KINDS
from kaleido_jax.errors import user_error
from kaleido_jax.evaluate.emoji import (
    Samples,
    draw,
    draw_captions,
    image_size_of,
    measured_with,
    modes_of_caption,
    report_of,
)
from kaleido_jax.evaluate.scene_reading import see
from kaleido_jax.evaluate.sprite_reader import SpriteReader, open_reader
from kaleido_jax.runtime.files import fingerprint, replacing, write_atomically
from kaleido_jax.sampling.pipeline import KaleidoPipeline

log = logging.getLogger(__name__)

GAMMAS = (1.0, 2.0, 4.0, 8.0)
SHOWN_GAMMAS = (1.0, 4.0, 8.0)  # rows of the picture
SHOWN_IMAGES = 8  # the first of each model in a row, in lines of four
COLUMNS: tuple[tuple[str, str, str], ...] = (  # key of the report, heading, format
    ("effective_number", "effective number", "{:.2f}"),
    ("effective_number_exact", "of a perfect model", "{:.2f}"),
    ("modes_found", "modes found", "{:.1f}"),
    ("total_variation", "total variation", "{:.3f}"),
    ("kind_right", "right kind", "{:.1%}"),
    ("sprite_as_said", "sprite as z says", "{:.1%}"),
    ("box_iou_median", "box IoU", "{:.2f}"),
    ("background_as_said", "background as z says", "{:.1%}"),
)
# The picture is 1080 px wide and is read at about 390 on a phone, where its letters are 13 px high.
_WIDTH, _MARGIN, _GAP, _FONT_PX = 1080, 24, 8, 36
_PAPER, _INK, _FAINT = (255, 255, 255), (20, 20, 24), (96, 98, 108)


def sweep(
    models: Mapping[str, KaleidoPipeline],
    folder: Path,
    *,
    gammas: Sequence[float] = GAMMAS,
    num_samples: int = 2_000,
    seed: int = 0,
    caption: str = KINDS[0],
    **sample: Any,
) -> dict[str, Any]:
    """Measures every model at every gamma; writes sweep.json, sweep.md and sweep.png into the folder.

    Args:
      models: by the name that table and picture show, e.g. {"baseline": ..., "Kaleido": ...}; at most two, of images
        of one size.
      folder: also keeps the results of finished pairs, and the samples of unfinished ones.
      gammas: guidance weights.
      num_samples: of each model at each gamma, the ten kinds in turn.
      seed: of all samples.
      caption: the kind that the picture shows.
      **sample: fields of config.sample for all models, e.g. num_steps=20; each model's own where none is given.

    Returns:
      What sweep.json holds: `of`, and under `models` for each name and gamma the measures of `emoji.report_of`.

    Raises:
      UserError: images of several sizes, an unknown kind, or a field that is unknown or out of range.
    """
    reader = _open_reader(models, caption, folder)
    reports: dict[str, dict[str, Any]] = {}
    shown: dict[str, dict[float, at.Images]] = {}
    for name, pipeline in models.items():
        for gamma in gammas:
            settings = pipeline.override(sample | {"gamma": gamma})
            of = measured_with(pipeline, settings, num_samples, seed)
            stem = folder / f"{name.lower()}-gamma-{gamma:g}-{fingerprint(json.dumps(of))}"
            if not stem.with_suffix(".npz").exists():
                log.info("%s at gamma %g", name, gamma)
                samples = draw(pipeline, settings, num_samples, seed, parts := stem.with_suffix(".parts"))
                report = {"of": of} | report_of(samples, reader)
                write_atomically(stem.with_suffix(".json"), json.dumps(report).encode())
                _keep_first(samples, stem.with_suffix(".npz"))
                shutil.rmtree(parts)
            reports.setdefault(name, {})[f"{gamma:g}"] = json.loads(stem.with_suffix(".json").read_text())
            with np.load(stem.with_suffix(".npz"), allow_pickle=False) as arrays:
                shown.setdefault(name, {})[gamma] = arrays[caption]
    result = {"reader": reader.metadata, "models": reports}
    write_atomically(folder / "sweep.json", json.dumps(result, indent=2).encode())
    write_atomically(folder / "sweep.md", table(result).encode())
    rows = {gamma: [shown[name][gamma] for name in models] for gamma in gammas if gamma in SHOWN_GAMMAS}
    if rows:
        notes = {
            gamma: [_note(reports[name][f"{gamma:g}"]["captions"].get(caption)) for name in models] for gamma in rows
        }
        _save(picture(caption, list(models), rows, notes), folder / "sweep.png")
    return result


def show(
    models: Mapping[str, KaleidoPipeline],
    folder: Path,
    *,
    gammas: Sequence[float] = SHOWN_GAMMAS,
    seed: int = 0,
    caption: str = KINDS[0],
    **sample: Any,
) -> Path:
    """Only the picture: eight images of one caption from each model at each gamma, in less than a minute on a CPU.

    Args: as `sweep`.

    Returns:
      The path of the picture, compare.png in the folder.

    Raises:
      UserError: as `sweep`.
      FloatingPointError: samples are not finite.
    """
    reader = _open_reader(models, caption, folder)
    rows: dict[float, list[at.Images]] = {}
    notes: dict[float, list[str]] = {}
    for gamma in gammas:
        for pipeline in models.values():
            pixels = draw_captions(
                pipeline, pipeline.override(sample | {"gamma": gamma}), [caption] * SHOWN_IMAGES, seed
            )
            rows.setdefault(gamma, []).append(pixels)
            notes.setdefault(gamma, []).append(_note(modes_of_caption(see(pixels, reader), KINDS.index(caption))))
    _save(picture(caption, list(models), rows, notes), folder / "compare.png")
    return folder / "compare.png"


def _open_reader(models: Mapping[str, KaleidoPipeline], caption: str, folder: Path) -> SpriteReader:
    sizes = {image_size_of(pipeline.config) for pipeline in models.values()}
    if len(sizes) != 1 or len(models) > 2:
        raise user_error(f"{len(models)} models of {sorted(sizes)} px", "one or two of one size", "choose others")
    if caption not in KINDS:
        raise user_error(f"caption {caption!r}", f"one of {', '.join(KINDS)}", "choose one of them")
    return open_reader(sizes.pop(), folder)


def _save(sheet: Image.Image, path: Path) -> None:
    with replacing(path) as temporary:
        sheet.save(temporary, "png")


def _keep_first(samples: Samples, path: Path) -> None:
    firsts = {name: samples.pixels[samples.kinds == kind][:SHOWN_IMAGES] for kind, name in enumerate(KINDS)}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **firsts)


def _note(one: Mapping[str, Any] | None) -> str:
    # With few samples not every caption has some.
    return "" if one is None else f"{one['modes_found']} of 12 modes in {one['samples']} images"


def table(result: Mapping[str, Any]) -> str:
    """A Markdown table with a row for each model and gamma; "-" where a measure does not apply."""
    lines = ["| model | gamma | " + " | ".join(heading for _, heading, _ in COLUMNS) + " |"]
    lines.append("|---|---|" + "---|" * len(COLUMNS))
    true = None
    for name, by_gamma in result["models"].items():
        for gamma, report in by_gamma.items():
            cells = [
                "-" if report.get(key) is None else form.format(report[key]).replace("%", " %")
                for key, _, form in COLUMNS
            ]
            lines.append(f"| {name} | {gamma} | " + " | ".join(cells) + " |")
            true, number = report["effective_number_true"], report["of"]["num_samples"]
    lines += [
        "",
        f"Means over the captions of {number:,} samples at each gamma. Effective number = exp(entropy) of the modes; "
        f"the true one is {true:.2f} of 12. A perfect model gets a little less, since the samples are few. The reader "
        f"of the sprites is right on {result['reader']['accuracy']:.1%} of held-out real scenes.".replace("%", " %"),
    ]
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------------------ picture
def picture(
    caption: str, names: Sequence[str], rows: Mapping[float, Sequence[at.Images]], notes: Mapping[float, Sequence[str]]
) -> Image.Image:
    """One row for each gamma, one block of images for each model, side by side.

    Args:
      caption: of all images.
      names: of the models.
      rows: for each gamma the images of each model.
      notes: for each gamma what stands above each model's images.
    """
    font, small = ImageFont.load_default(_FONT_PX), ImageFont.load_default(round(0.8 * _FONT_PX))
    block = (_WIDTH - _MARGIN * (len(names) + 1)) // len(names)
    across = 4 if len(names) > 1 else 8
    side = (block - _GAP * (across - 1)) // across
    lines = -(-SHOWN_IMAGES // across)
    step = round(1.4 * _FONT_PX)
    row_height = 2 * step + lines * (side + _GAP) + _MARGIN
    sheet = Image.new("RGB", (_WIDTH, 2 * _MARGIN + 2 * step + len(rows) * row_height), _PAPER)
    ink = ImageDraw.Draw(sheet)
    lefts = [_MARGIN + i * (block + _MARGIN) for i in range(len(names))]
    ink.text((_MARGIN, _MARGIN), f'"{caption}"', font=font, fill=_INK)
    top = _MARGIN + step
    for left, name in zip(lefts, names, strict=True):
        ink.text((left, top), name, font=font, fill=_INK)
    top += step + _MARGIN // 2
    for gamma, blocks in rows.items():
        ink.line((_MARGIN, top, _WIDTH - _MARGIN, top), fill=_FAINT, width=2)
        ink.text((_MARGIN, top + 6), f"gamma {gamma:g}", font=font, fill=_INK)
        for left, note, images in zip(lefts, notes[gamma], blocks, strict=True):
            ink.text((left, top + step + 4), note, font=small, fill=_FAINT)
            for i, pixels in enumerate(images[:SHOWN_IMAGES]):
                corner = (left + (i % across) * (side + _GAP), top + 2 * step + 6 + (i // across) * (side + _GAP))
                sheet.paste(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC), corner)
        top += row_height
    return sheet
