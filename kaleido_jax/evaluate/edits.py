"""Whether images of the emoji scenes follow edits of their z, and stay as they were elsewhere.

Each image gets one edit of each kind, drawn by its index: its box is moved or resized, or its text gets another word
for the sprite or for the background. It is drawn again from the same noise: as `KaleidoPipeline.edit` does by default,
with all other segments kept, and with those behind the edit sampled anew. Readers that know nothing of z say what is
seen.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from kaleido_jax import array_types as at
from kaleido_jax.config.schema import Config, Sample
from kaleido_jax.data.scene_words import Said, all_said_by, placed_in, text_of
from kaleido_jax.data.sources.emoji import BACKGROUNDS, KINDS, SPRITE_NAMES, SPRITES_PER_KIND
from kaleido_jax.errors import user_error
from kaleido_jax.evaluate.emoji import READING_SEC, image_size_of, measured_with
from kaleido_jax.evaluate.parts import Arrays, draw_in_parts, remove_samples, stored_report
from kaleido_jax.evaluate.scene_reading import see
from kaleido_jax.evaluate.sprite_reader import SpriteReader, open_reader
from kaleido_jax.latents.geometry import box_iou, round_box, to_pixels
from kaleido_jax.latents.segments.bbox import Box
from kaleido_jax.latents.types import Latents
from kaleido_jax.latents.validity import MAX_COORDINATE
from kaleido_jax.runtime import distributed
from kaleido_jax.runtime.files import fingerprint, write_atomically
from kaleido_jax.sampling.editing import edit_seed
from kaleido_jax.sampling.output import pixels_of
from kaleido_jax.sampling.pipeline import KaleidoPipeline
from kaleido_jax.sampling.tokens import pad_rows, read_latents

VERSION = "edits/1"  # raise it when the edits or the measures change
PART = 50  # images whose edits are drawn and stored together, some 11 for each
BOX_RIGHT_FROM = 0.7  # IoU of the requested and the found box
WAYS = {"default": None, "kept": False, "follow": True}  # `follow` of an edit
EDITS = ("move", "resize", "word", "color")
_FAR = 200  # of 1000: a moved box goes at least as far, if there is room
_SIDES = (0.45, 0.92)  # of a resized sprite that is not tilted; as in the scenes
_LEAST_FACTOR = 1.2  # a resized box is larger or smaller by at least this
_TRIES = 64


@dataclass(frozen=True, kw_only=True)
class SceneEdit:
    """An edit of one z and what should then be seen."""

    segments: dict[str, Any]  # as `KaleidoPipeline.edit` takes them
    box: tuple[int, int, int, int]  # 0..1000; the old one for another word
    sprite: str
    background: str


def measure(config: Config, workdir: Path) -> dict[str, Any]:
    """The report in eval/edits.json, measured unless it belongs to the latest checkpoint and this eval.

    Its keys are those of `report_of`, and: `of` (what the numbers depend on), `reader` (the metadata of the reader).
    Each of config.eval.num_samples images is drawn some eleven times.

    Raises:
      UserError: a model without images or without text and boxes, or no checkpoint.
    """
    image_size = image_size_of(config)
    if missing := [name for name in ("text", "bbox") if name not in config.latents.segments]:
        found = f"edits of a model without {' and '.join(missing)}"
        raise user_error(found, "one with both", "set config.eval.protocol to emoji")
    path = workdir / "eval" / "edits.json"
    pipeline = KaleidoPipeline.from_pretrained(workdir, config)
    number, seed = config.eval.num_samples, config.seed
    sample = pipeline.override({"gamma": config.eval.gamma, "num_steps": config.eval.num_steps, "grammar": True})
    metadata = measured_with(pipeline, sample, number, seed)
    metadata |= {"edits": VERSION, "reader_steps": config.eval.reader_steps}
    if (report := stored_report(path, metadata)) is not None:
        return report
    parts = workdir / "eval" / "edits_samples" / fingerprint(json.dumps(metadata))
    drawn = draw_in_parts(number, PART, parts, lambda rows: draw(pipeline, sample, rows, number, seed))

    def make() -> dict[str, Any]:
        reader = open_reader(image_size, workdir / "eval", config.eval.reader_steps)
        z = [read_latents(row, pipeline.codec).latents for part in drawn for row in part["tokens"]]
        report = {"of": metadata, "reader": reader.metadata} | report_of(drawn, z, number, seed, reader)
        write_atomically(path, json.dumps(report, indent=2).encode())
        remove_samples(parts.parent, [parts])
        return json.loads(json.dumps(report))

    return distributed.tell("the report", make, READING_SEC)


# ------------------------------------------------------------------------------------------ the edits
def scene_edits(z: Latents | None, seed: int, index: int) -> dict[str, SceneEdit]:
    """The edits of one image's z by their kinds, a function of z, seed and index.

    Empty for a z that is none of one sprite, with text and box of the same name.
    """
    said = all_said_by(z.text or "") if z else []
    if len(said) != 1 or len(z.bbox or ()) != 1 or z.bbox[0].phrase != said[0].name or said[0].name not in SPRITE_NAMES:
        return {}
    (one,), (old,) = said, z.bbox
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, index))))
    kind = SPRITE_NAMES.index(one.name) // SPRITES_PER_KIND
    siblings = SPRITE_NAMES[SPRITES_PER_KIND * kind : SPRITES_PER_KIND * (kind + 1)]
    moved, resized = _moved(old.box, rng), _resized(old.box, SPRITE_NAMES.index(one.name), rng)
    named = replace(one, name=_other(siblings, one.name, rng))
    colored = replace(one, background=_other(list(BACKGROUNDS), one.background, rng))
    return {
        "move": _edit_of(one, moved, {"bbox": (Box(old.phrase, moved),)}),
        "resize": _edit_of(one, resized, {"bbox": (Box(old.phrase, resized),)}),
        "word": _edit_of(named, old.box, {"text": text_of(named)}),
        "color": _edit_of(colored, old.box, {"text": text_of(colored)}),
    }


def _edit_of(said: Said, box: tuple[int, int, int, int], segments: dict[str, Any]) -> SceneEdit:
    return SceneEdit(segments=segments, box=box, sprite=said.name, background=said.background)


def _other(words: Sequence[str], word: str, rng: np.random.Generator) -> str:
    others = [one for one in words if one != word]
    return others[int(rng.integers(len(others)))]


def _moved(box: Sequence[int], rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A box of the same size at a uniformly drawn place, at least _FAR away; the farthest tried if none is."""
    x1, y1, x2, y2 = box
    room = (MAX_COORDINATE - (x2 - x1) + 1, MAX_COORDINATE - (y2 - y1) + 1)
    places = np.stack([rng.integers(0, high, _TRIES) for high in room], axis=-1)
    distances = np.hypot(*(places - (x1, y1)).T)
    far = np.flatnonzero(distances >= _FAR)
    x, y = (int(v) for v in places[far[0] if len(far) else distances.argmax()])
    return x, y, x + x2 - x1, y + y2 - y1


def _resized(box: Sequence[int], sprite: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A box of the same shape, as near to the same center as it fits, of a sprite whose side is one of the scenes'."""
    corners = np.asarray(box, np.float64).reshape(2, 2)
    size, (_, _, side) = corners[1] - corners[0], placed_in(tuple(box), sprite, 0.0)
    factors = rng.uniform(*_SIDES, _TRIES) / side
    enough = factors[np.abs(np.log(factors)) >= np.log(_LEAST_FACTOR)]
    factor = min(float(enough[0]) if len(enough) else 1 / _LEAST_FACTOR, float((MAX_COORDINATE / size).min()))
    half = factor * size / 2
    center = np.clip(corners.mean(axis=0), half, MAX_COORDINATE - half)
    return round_box(np.concatenate([center - half, center + half]))


# ---------------------------------------------------------------------------------------- the samples
def draw(pipeline: KaleidoPipeline, sample: Sample, rows: list[int], number: int, seed: int) -> Arrays:
    """Images of the kinds in turn before and after their edits, those that cannot be edited left out.

    Returns:
      rows: (n,) sample indices. tokens: (n, t) of z before. before, and with the same caption fresh_seed (another z and
      noise, those of sample index + number) and fresh_noise (the same z): (n, h, w, 3) uint8. boxes: (n, edits, ways,
      4), the box of z after, which may be none of one sprite: then 0. after: (n, edits, ways, h, w, 3) uint8.

    Raises:
      FloatingPointError: samples are not finite.
    """
    kinds = pipeline.config.data.emoji.kinds or KINDS
    captions = [kinds[row % len(kinds)] for row in rows]
    before = [one.latents for one in pipeline.sample_latents(captions, seed=seed, indices=rows, sample=sample)]
    others = [row + number for row in rows]
    fresh = pipeline.sample_latents(captions, seed=seed, indices=others, sample=sample)
    edits = [scene_edits(z, seed, row) for z, row in zip(before, rows, strict=True)]
    here = [i for i, one in enumerate(edits) if one]
    rows, captions, before, edits = ([values[i] for i in here] for values in (rows, captions, before, edits))
    after = {
        (kind, way): pipeline.edit_latents(
            captions,
            before,
            [one[kind].segments for one in edits],
            seed=edit_seed(seed, 0),
            indices=rows,
            sample=sample,
            follow=follow,
        )
        for kind in EDITS
        for way, follow in WAYS.items()
    }
    spelled = [pipeline.latents_tokens(z) for z in before]
    wanted = [(i, rows[i], ids) for i, ids in enumerate(spelled)]
    wanted += [(i, rows[i] + number, ids) for i, ids in enumerate(spelled)]
    wanted += [(i, rows[i] + number, fresh[j].spelled(pipeline.codec)) for i, j in enumerate(here)]
    wanted += [(i, rows[i], pipeline.latents_tokens(z[i])) for i in range(len(rows)) for z in after.values()]
    pixels = _draw_each(pipeline, sample, captions, wanted, seed)
    n = len(rows)
    boxes = [[z[i].bbox[0].box if z[i].bbox else (0, 0, 0, 0) for z in after.values()] for i in range(n)]
    return {
        "rows": np.asarray(rows, np.int64),
        "tokens": pad_rows(spelled, pipeline.config.latents.max_latents_tokens),
        "before": pixels[:n],
        "fresh_noise": pixels[n : 2 * n],
        "fresh_seed": pixels[2 * n : 3 * n],
        "after": pixels[3 * n :].reshape(n, len(EDITS), len(WAYS), *pixels.shape[1:]),
        "boxes": np.asarray(boxes, np.int64).reshape(n, len(EDITS), len(WAYS), 4),
    }


def _draw_each(
    pipeline: KaleidoPipeline,
    sample: Sample,
    captions: Sequence[str],
    wanted: Sequence[tuple[int, int, tuple[int, ...]]],
    seed: int,
) -> at.Images:
    """An image of each (index into captions, sample index of the noise, tokens of z); equal ones are drawn once."""
    once = list(dict.fromkeys(wanted))
    size = image_size_of(pipeline.config)
    if not once:
        return np.zeros((0, size, size, 3), np.uint8)
    x = pipeline.sample_images(
        [captions[i] for i, _, _ in once],
        [ids for _, _, ids in once],
        seed=seed,
        indices=[index for _, index, _ in once],
        sample=sample,
    )
    if not np.isfinite(x).all():
        raise FloatingPointError("samples are not finite; check the checkpoint, or lower gamma")
    where = {one: i for i, one in enumerate(once)}
    return pixels_of(x)[[where[one] for one in wanted]]


# ------------------------------------------------------------------------------------------- measures
def report_of(
    parts: Sequence[Arrays], before: Sequence[Latents], number: int, seed: int, reader: SpriteReader
) -> dict[str, Any]:
    """All measures of parts drawn by `draw`.

    `edited` is the share of images that could be edited. For each kind of edit there are

    - `..._box_iou_median`, `..._box_right`: IoU of the requested and the found box, and the share with at least 0.7;
      of the old box where another word was requested
    - `..._sprite_right`, `..._background_right`: share that shows the requested one, or where none was, that of z
    - `..._outside_of_fresh_seed`: mean change of the pixels that neither the old nor the new box touches, in parts of
      what another seed changes there (same caption, another z, another noise); `..._outside_of_fresh_noise` likewise
      with another noise alone. The new box is the requested one, or that of the edited z. Not for color.

    They are of edits by default; `kept` and `follow` have the same of the other ways. `before_...` are of the images
    before: the ceiling. None where nothing could be edited.

    Args:
      parts: of `draw`.
      before: z of all their images before the edits.
      number: of images asked for.
      seed: of the edits.
      reader: of images of this size.

    Raises:
      UserError: images of another size than the reader's.
    """
    images = {name: np.concatenate([part[name] for part in parts]) for name in parts[0] if name != "tokens"}
    edits = [scene_edits(z, seed, row) for z, row in zip(before, images["rows"].tolist(), strict=True)]
    olds = [replace(one["move"], box=z.bbox[0].box) for z, one in zip(before, edits, strict=True)]
    unedited = _agreement(images["before"], olds, reader)
    report: dict[str, Any] = {"edited": len(edits) / number} | {f"before_{name}": v for name, v in unedited.items()}
    ways: dict[str, dict[str, Any]] = {way: {} for way in WAYS}
    for i, kind in enumerate(EDITS):
        wanted = [one[kind] for one in edits]
        for j, way in enumerate(WAYS):
            after = images["after"][:, i, j]
            found = _agreement(after, wanted, reader)
            if kind != "color":
                three = zip(olds, images["boxes"][:, i, j].tolist(), wanted, strict=True)
                boxes = np.array([(old.box, box, new.box) for old, box, new in three], np.int64).reshape(-1, 3, 4)
                found |= _outside(images, after, boxes)
            ways[way] |= {f"{kind}_{name}": value for name, value in found.items()}
    return report | ways.pop("default") | ways


def _agreement(images: at.Images, wanted: Sequence[SceneEdit], reader: SpriteReader) -> dict[str, float | None]:
    seen = see(images, reader) if wanted else []
    pairs = list(zip(seen, wanted, strict=True))
    ious = [0.0 if s.box is None else float(box_iou(s.box, w.box)) for s, w in pairs]
    return {
        "box_iou_median": float(np.median(ious)) if ious else None,
        "box_right": _mean([iou >= BOX_RIGHT_FROM for iou in ious]),
        "sprite_right": _mean([SPRITE_NAMES[s.sprite] == w.sprite for s, w in pairs]),
        "background_right": _mean([s.background == w.background for s, w in pairs]),
    }


def _outside(images: Arrays, after: at.Images, boxes: Int[np.ndarray, "n b 4"]) -> dict[str, float | None]:
    free = [~_touched(one, after.shape[1]) for one in boxes]
    rows = [i for i, mask in enumerate(free) if mask.any()]

    def change(others: at.Images) -> float | None:
        """Mean over the images with such pixels of the mean difference of their channels, 0..255."""
        pairs = [(images["before"][i][free[i]], others[i][free[i]]) for i in rows]
        return _mean([float(np.abs(one - other.astype(np.float32)).mean()) for one, other in pairs])

    changed, by_seed, by_noise = change(after), change(images["fresh_seed"]), change(images["fresh_noise"])
    return {
        "outside_of_fresh_seed": changed / by_seed if by_seed else None,
        "outside_of_fresh_noise": changed / by_noise if by_noise else None,
    }


def _touched(boxes: Int[np.ndarray, "b 4"], size_px: int) -> Bool[np.ndarray, "s s"]:
    """The pixels that any of the boxes (0..1000) touches."""
    touched = np.zeros((size_px, size_px), bool)
    for box in to_pixels(boxes, size_px):
        (x1, y1), (x2, y2) = np.floor(box[:2]).astype(int), np.ceil(box[2:]).astype(int)
        touched[y1:y2, x1:x2] = True
    return touched


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None
