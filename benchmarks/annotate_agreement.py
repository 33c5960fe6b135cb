"""How far small models agree with people: YOLOX-Nano's boxes, U2-Net-p's ellipses, our quantizers' vokens.

Command:  python benchmarks/annotate_agreement.py --data=COCO_FOLDER --weights=FOLDER [--out=FILE.md]
Data:     a folder with annotations.json and images/ (COCO's layout, with boxes and masks).
Weights:  a folder with yolox_nano_coco80.onnx, its .names file (80 classes in COCO's order) and u2netp.onnx; with
          taef2_encoder_fp16.npz the vokens of a tiny autoencoder are measured too.
Result:   a table in Markdown on stdout, or in --out. It is an estimate of this stand-in, not of the paper's annotators.
"""

import argparse
import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from scipy.optimize import linear_sum_assignment

from kaleido_jax.annotate.vision.detector import open_detector
from kaleido_jax.annotate.vision.segmenter import open_segmenter
from kaleido_jax.annotate.vokens.features import open_feature
from kaleido_jax.annotate.vokens.quality import quality, retrieval
from kaleido_jax.annotate.vokens.quantizer import fit_quantizer
from kaleido_jax.config.schema import Annotate, AnnotateBbox, AnnotateBlob, Data
from kaleido_jax.data.crop import square_crop
from kaleido_jax.data.sources import open_source
from kaleido_jax.errors import UserError
from kaleido_jax.latents import geometry

SIZE_PX = 256
SIZES = (("small", 0, 32**2), ("medium", 32**2, 96**2), ("large", 96**2, np.inf))  # COCO's, by area in the crop
MATCH_IOU = 0.5
LOWEST_SCORE = 0.05
SETTINGS = ((0.3, 10), (0.3, 100), (0.05, 100))  # (threshold, boxes an image); the first is the config's default
HELD_OUT_EVERY = 3  # photos: every third is held out of the quantizers' fit
QUANTIZERS = (("residual", 8, 64), ("fsq", 8, 64), ("fsq", 32, 64))  # kind, tokens, codebook


# ------------------------------------------------------------------------------------------------- boxes
def pairs(drawn, found, same):
    """One-to-one pairs (object, detection) with IoU of at least MATCH_IOU, as many as can be."""
    if not len(drawn) or not len(found):
        return []
    iou = geometry.box_iou(drawn[:, None], found[None])
    iou = np.where((iou >= MATCH_IOU) & same, iou, 0)
    rows, columns = linear_sum_assignment(-np.where(iou > 0, 1 + iou, 0))
    return [(r, c) for r, c in zip(rows, columns, strict=True) if iou[r, c] > 0]


def box_rows(examples, detections, classes):
    """Recall by size and precision for each setting, with and without regard to the class."""
    rows = []
    for threshold, most in SETTINGS:
        for aware in (False, True):
            hits, right, all_found = dict.fromkeys(("all", *(s for s, _, _ in SIZES)), 0), 0, 0
            totals = dict(hits)
            for example, found in zip(examples, detections, strict=True):
                objects = [o for o in example.objects if o.box is not None]
                if not objects:
                    continue  # a photo without labels says nothing of what is in it
                kept = np.flatnonzero(found.scores >= threshold)[:most]
                drawn = np.array([o.box for o in objects])
                same = np.array([[not aware or classes[o.phrase] == found.classes[k] for k in kept] for o in objects])
                matched = pairs(drawn, found.boxes[kept], same.reshape(len(objects), len(kept)))
                right, all_found = right + len(matched), all_found + len(kept)
                for r, o in enumerate(objects):
                    for name in ("all", size_of(o)):
                        totals[name] += 1
                        hits[name] += any(r == m for m, _ in matched)
            recall = [f"{hits[n] / totals[n]:.3f}" for n in hits]
            rows.append([threshold, most, "same" if aware else "any", *recall, f"{right / all_found:.3f}"])
    return rows, totals


def size_of(labeled):
    x1, y1, x2, y2 = labeled.box
    area = (x2 - x1) * (y2 - y1)
    return next(name for name, low, high in SIZES if low <= area < high)


# ---------------------------------------------------------------------------------------------- ellipses
def filled(ellipse):
    return geometry.ellipse_mask(np.asarray(ellipse, np.float64), SIZE_PX)


def ellipse_rows(segmenter, examples, detections):
    """IoU with the human mask: of what people's box or mask gives, and of U2-Net-p in human and detected boxes."""
    kinds = ("ellipse of the human mask", "ellipse in the human box", "mask by the model in the human box")
    kinds += ("ellipse by the model in the human box", "ellipse by the model in the detected box")
    scores, empty = {kind: [] for kind in kinds}, dict.fromkeys(kinds, 0)
    threshold, most = SETTINGS[0]
    for example, found in zip(examples, detections, strict=True):
        objects = [o for o in example.objects if o.box is not None and o.mask is not None and o.mask.any()]
        objects = [o for o in objects if size_of(o) != SIZES[0][0]]
        if not objects:
            continue
        drawn = np.array([o.box for o in objects])
        by_model = segmenter.masks(example.image, drawn)
        for o, mask in zip(objects, by_model, strict=True):
            size, human = size_of(o), o.mask
            box = geometry.round_box(geometry.to_thousandths(o.box, SIZE_PX))
            for kind, shape in (
                (kinds[0], filled(geometry.mask_to_ellipse(human))),
                (kinds[1], filled(geometry.box_to_ellipse(np.array(box, np.float64)))),
                (kinds[2], mask),
                (kinds[3], filled(geometry.mask_to_ellipse(mask)) if mask.any() else mask),
            ):
                scores[kind].append((size, float(geometry.mask_iou(shape, human))))
                empty[kind] += not shape.any()
        kept = np.flatnonzero(found.scores >= threshold)[:most]
        matched = pairs(drawn, found.boxes[kept], np.ones((len(objects), len(kept)), bool))
        if matched:
            masks = segmenter.masks(example.image, found.boxes[kept][[c for _, c in matched]])
            for (r, _), mask in zip(matched, masks, strict=True):
                shape = filled(geometry.mask_to_ellipse(mask)) if mask.any() else mask
                scores[kinds[4]].append((size_of(objects[r]), float(geometry.mask_iou(shape, objects[r].mask))))
                empty[kinds[4]] += not mask.any()
    rows = []
    for kind in kinds:
        values = np.array([v for _, v in scores[kind]])
        by_size = [[v for s, v in scores[kind] if s == name] for name, _, _ in SIZES[1:]]
        means = [f"{np.mean(v):.3f}" if v else "-" for v in by_size]
        rows.append([kind, len(values), f"{values.mean():.3f}", f"{np.median(values):.3f}", *means, empty[kind]])
    return rows


# ------------------------------------------------------------------------------------------------ vokens
def voken_rows(examples, weights):
    """Quality on held-out photos."""
    features = [open_feature("pixels")]
    if (encoder := weights / "taef2_encoder_fp16.npz").exists():
        features.append(open_feature("autoencoder", str(encoder)))
    held = np.arange(len(examples)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    rows = []
    for feature in features:
        values = feature(example.image for example in examples)
        for kind, tokens, codebook in QUANTIZERS:
            quantizer = fit_quantizer(values[~held], kind=kind, vokens_per_image=tokens, codebook_size=codebook)
            fitted, held_out = quality(quantizer, values[~held]), quality(quantizer, values[held])
            found = retrieval(quantizer, values[held])
            rows.append(
                [
                    feature.name,
                    kind,
                    f"{tokens} x {quantizer.codebook_size}",
                    f"{fitted['explained_variance'][-1]:.3f}",
                    f"{held_out['explained_variance'][-1]:.3f}",
                    f"{held_out['rmse'][-1]:.4f}",
                    f"{found['neighbor_recall']:.3f}",
                    f"{found['identity_recall']:.3f}",
                    f"{np.mean(held_out['codes_used']):.2f}",
                    f"{np.mean(held_out['perplexity']):.1f}",
                ]
            )
    return rows, int(held.sum()), int((~held).sum())


# ------------------------------------------------------------------------------------------------ report
def table(head, rows):
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)


def hardware():
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        model = next((x.split(":")[1].strip() for x in info.read_text().splitlines() if "model name" in x), model)
    return f"{os.cpu_count()} cores of {model}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with annotations.json and images")
    parser.add_argument("--weights", type=Path, required=True, help="folder of the models")
    parser.add_argument("--out", type=Path, help="Markdown file to write; stdout if absent")
    parser.add_argument("--limit", type=int, help="only the first photos, to try it out")
    args = parser.parse_args()
    try:
        text = measure(args.data, args.weights, args.limit)
    except UserError as error:
        parser.error(str(error))
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    else:
        print(text)


def measure(data, weights, limit):
    config = Annotate(
        bbox=AnnotateBbox(kind="onnx", model=str(weights / "yolox_nano_coco80.onnx"), threshold=LOWEST_SCORE),
        blob=AnnotateBlob(kind="onnx", model=str(weights / "u2netp.onnx")),
    )
    detector, segmenter = open_detector(config), open_segmenter(config)
    source = open_source(Data(source="coco", root=str(data)))
    examples = [square_crop(source[i], SIZE_PX) for i in range(min(limit or len(source), len(source)))]
    categories = json.loads((data / "annotations.json").read_text(encoding="utf-8"))["categories"]
    # Detectors number them in the order of their ids; their names may be others ("sofa", "couch").
    classes = {c["name"]: number for number, c in enumerate(sorted(categories, key=lambda c: c["id"]))}
    detections = [detector.detect(example.image) for example in examples]
    boxes, totals = box_rows(examples, detections, classes)
    ellipses = ellipse_rows(segmenter, examples, detections)
    vokens, held, fitted = voken_rows(examples, weights)
    labeled = sum(bool(example.objects) for example in examples)
    threshold, most = SETTINGS[0]
    voken_head = ["feature", "quantizer", "tokens x codes", "variance explained, fitted", "held out", "RMSE"]
    voken_head += ["neighbor", "own", "codes used", "perplexity"]
    sizes = ", ".join(f"{totals[name]} {name}" for name, _, _ in SIZES)
    return f"""# Agreement of small annotators with people

Measured {datetime.now(UTC).date()} on {hardware()}, by

    python benchmarks/annotate_agreement.py --data=COCO_FOLDER --weights=WEIGHTS_FOLDER

{len(examples)} COCO photos, cut to the center square at {SIZE_PX} px; {labeled} of them have objects marked by people:
{totals["all"]} without crowds ({sizes}). Sizes are by the box's area in the crop,
with COCO's limits of 32 and 96 px. These models stand in for the paper's (Qwen-VL, SAM, SEED), which are larger by
orders of magnitude.

## Boxes: YOLOX-Nano

Recall at IoU {MATCH_IOU}, one detection for one object; precision is the share of detections with an object.

{table(["score from", "boxes at most", "class", "all", "small", "medium", "large", "precision"], boxes)}

## Ellipses: U2-Net-p

IoU with the human mask, of medium and large objects. The first row is the most that an ellipse can reach by moments;
the second needs no model. The margin around a box was chosen on 80 of these objects. The last row counts only objects
whose box was found (score from {threshold}, {most} boxes). An empty mask counts 0.

{table(["what", "objects", "mean", "median", "medium", "large", "empty"], ellipses)}

## Vokens: our quantizers

Fitted on {fitted} photos, measured on {held} others. Neighbor: the nearest other photo by codes is that by features.
Own: the nearest codes to a photo's features are its own. Codes used and perplexity are means over tokens.

{table(voken_head, vokens)}
"""


if __name__ == "__main__":
    main()
