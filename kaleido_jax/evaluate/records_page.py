"""A model of own pictures as one HTML page that needs no other file, no script and no network."""

import base64
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from typing import Any

from PIL import Image

from kaleido_jax import array_types as at
from kaleido_jax.evaluate.stamp import Stamp, frechet_heading
from kaleido_jax.latents.render.layout import drawings_of, shapes_of
from kaleido_jax.latents.render.svg import render_svg
from kaleido_jax.sampling.output import png_bytes
from kaleido_jax.sampling.tokens import SampledLatents

_Z_PX = 128  # width of a picture of z, about that of a column of the page


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One caption of the page."""

    caption: str
    real: list[at.Image]
    samples: dict[str, list[at.Image]]  # of "model" and maybe "baseline", from the same noise
    z: list[SampledLatents]  # of the model's; empty for a model without latents


@dataclass(frozen=True, kw_only=True)
class _Row:
    """How a number is shown."""

    name: str
    heading: str
    better: str = ""  # "higher", "lower", or "" where it depends
    form: str = "{:.3f}"


_SETS = (
    _Row(name="kernel_distance", heading="kernel distance", better="lower", form="{:.4f}"),
    _Row(name="frechet", heading="", better="lower", form="{:.1f}"),
    _Row(name="precision", heading="precision", better="higher"),
    _Row(name="recall", heading="recall", better="higher"),
    _Row(name="density", heading="density", better="higher"),
    _Row(name="coverage", heading="coverage", better="higher"),
)
_LOSSES = (
    _Row(name="held_out_loss_dm", heading="L_DM, held-out", better="lower", form="{:.4f}"),
    _Row(name="train_loss_dm", heading="L_DM, training", form="{:.4f}"),
    _Row(name="held_out_loss_dm_other_z", heading="L_DM, held-out, z of another", form="{:.4f}"),
    _Row(name="train_loss_dm_other_z", heading="L_DM, training, z of another", form="{:.4f}"),
    _Row(name="held_out_loss_ar", heading="L_AR, held-out", better="lower"),
    _Row(name="train_loss_ar", heading="L_AR, training"),
)
_DIVERSITY = (
    _Row(name="vendi", heading="Vendi score of a caption", better="higher", form="{:.2f}"),
    _Row(name="similarity", heading="mean similarity within a caption", better="lower"),
)
_BOXES = (
    _Row(name="box_objects", heading="boxes of z", form="{:,}"),
    _Row(name="box_found", heading="overlap a box that is seen", better="higher", form="{:.1%}"),
    _Row(name="box_half", heading="with an IoU of 0.5 or more", better="higher", form="{:.1%}"),
    _Row(name="box_iou_median", heading="median IoU of those seen", better="higher", form="{:.2f}"),
)
_LATENTS = (
    _Row(name="latents_parsed", heading="z that parse", better="higher", form="{:.1%}"),
    _Row(name="latents_copied", heading="z that a training picture has", better="lower", form="{:.1%}"),
    _Row(name="latents_tokens", heading="tokens of z", form="{:.1f}"),
    _Row(name="latents_repetition", heading="repeated 4-grams within z", better="lower"),
    _Row(name="latents_distinct_1", heading="distinct tokens", better="higher", form="{:.4f}"),
    _Row(name="latents_distinct_2", heading="distinct 2-grams", better="higher"),
    _Row(name="latents_distinct_3", heading="distinct 3-grams", better="higher"),
)


def page(report: Mapping[str, Any], shown: Sequence[Shown], name: str) -> str:
    """The page of a report of `records.measure`.

    Args:
      report: what records.json holds.
      shown: captions with their pictures.
      name: of the run.
    """
    template = resources.files("kaleido_jax").joinpath("assets/pages/records.html").read_text(encoding="utf-8")
    parts = {
        "TITLE": escape(f"{name}: measured on its own pictures"),
        "ABOUT": escape(_about(report)),
        "NUMBERS": "\n".join(_tables(report)),
        "SAMPLES": "\n".join(_card(one) for one in shown),
        "STAMPS": escape(json.dumps({"of": report["of"], "stamps": report["stamps"]}, indent=1)),
    }
    first, *pieces = template.split("__")  # one pass, so that no caption can hold a place of the template
    return first + "".join(parts.get(piece, piece) for piece in pieces)


def _about(report: Mapping[str, Any]) -> str:
    of, counts = report["of"], report["counts"]
    sample = of["sample"]
    held_out = f"{counts['held_out_records']:,} held-out pictures" if counts["held_out_records"] else "none held out"
    captions = f"{counts['captions']:,} captions" if counts["captions"] > 1 else "one caption"
    return (
        f"{of['num_samples']:,} samples of {captions} at gamma {sample['gamma']:g}, "
        f"{sample['num_steps']} steps of {sample['sampler']}; {counts['training_records']:,} training pictures, "
        f"{held_out}."
    )


# ---------------------------------------------------------------------------------------------- numbers
def _tables(report: Mapping[str, Any]) -> list[str]:
    counts, left_out = report["counts"], report["left_out"]
    stamp = report["stamps"]["model"]
    frechet = frechet_heading(Stamp(**stamp | {"seeds": tuple(stamp["seeds"])}))
    sets = tuple(dataclasses.replace(row, heading=row.heading or frechet) for row in _SETS)
    few = tuple(_Row(name=f"few_{r.name}", heading=r.heading, better=r.better, form=r.form) for r in sets)
    number, reference = report["of"]["num_samples"], f"{counts['reference']:,} training pictures"
    images = f"{report['diversity_images']:.1f} pictures of each caption" if "diversity_images" in report else ""
    reads = " With the z of another picture, L_DM should be well above its own; where it is not, the denoiser does not "
    reads = f"{reads}read z yet: train longer." if "train_loss_dm_other_z" in report else ""
    groups = (
        (
            "Losses",
            "Of the same records at the same times and noise. Where a held-out loss is well above that of training "
            "records, these were learned by heart: pictures by L_DM, latents by L_AR. Add pictures, or train for fewer "
            f"steps.{reads}",
            _LOSSES,
            "" if counts["held_out_records"] else "nothing was held out (config.annotate.held_out_share)",
        ),
        (
            "Likeness",
            f"{number:,} samples beside {reference}. Precision and density: samples look like the pictures. Recall and "
            "coverage: all kinds of pictures occur. Blurred samples lie in the middle of everything: that raises all "
            "of these but recall, which is then near 0. A Frechet distance of so few is large for that reason alone.",
            sets,
            "",
        ),
        (
            "Likeness, with the ceiling",
            f"The first {counts['few']:,} samples and {counts['few']:,} held-out pictures, each beside {reference}. "
            "Real pictures of the same kind are the best that a model can reach. These numbers change with how many "
            "there are, so compare within this table only.",
            few,
            left_out.get("ceiling", left_out.get("few_frechet", "")),
        ),
        (
            "Diversity",
            f"Among {images or 'the samples of each caption'}. The Vendi score counts pictures that differ: from 1 for "
            "equal ones to their number.",
            _DIVERSITY,
            left_out.get("diversity", ""),
        ),
        (
            "Boxes",
            "The detector that made the boxes of the records looks at the samples, and its boxes are paired with those "
            "of z; for real pictures, at the size that the model sees.",
            _BOXES,
            left_out.get("boxes", ""),
        ),
        ("Latents", "Sampled z as sequences of tokens.", _LATENTS, ""),
    )
    return [_table(*group, report) for group in groups]


def _table(title: str, text: str, rows: Sequence[_Row], reason: str, report: Mapping[str, Any]) -> str:
    """A table of what is there of some numbers, and why the rest is not; "" where there is neither."""
    columns = {"model": report, "baseline": report.get("baseline", {}), "real": report["real"]}
    rows = [row for row in rows if any(row.name in values for values in columns.values())]
    columns = {name: values for name, values in columns.items() if any(row.name in values for row in rows)}
    if not rows and not reason:
        return ""
    out = [f"<section><h2>{title}</h2>", f'<p class="faint">{escape(text)}</p>' if rows else ""]
    if rows:
        head = "".join(f'<th scope="col">{name}</th>' for name in columns)
        out.append(f'<div class="scroll"><table><thead><tr><th scope="col"></th>{head}</tr></thead><tbody>')
        for row in rows:
            better = f' <small class="faint">{row.better} is better</small>' if row.better else ""
            cells = "".join(f"<td>{_number(values.get(row.name), row.form)}</td>" for values in columns.values())
            out.append(f'<tr><th scope="row">{escape(row.heading)}{better}</th>{cells}</tr>')
        out.append("</tbody></table></div>")
    if reason:
        out.append(f'<p class="faint">Left out: {escape(reason)}.</p>')
    return "\n".join([*out, "</section>"])


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value).replace("%", " %")


# ---------------------------------------------------------------------------------------------- samples
def _card(one: Shown) -> str:
    rows = [("real", [_picture(image, one.caption) for image in one.real])]
    for name, images in one.samples.items():
        cells = [_picture(image, f"{name}: {one.caption}") for image in images]
        if name == "model" and one.z:
            cells = [_with_z(cell, z, image) for cell, z, image in zip(cells, one.z, images, strict=True)]
        rows.append((name, cells))
    strips = "".join(
        f'<div class="strip"><b>{name}</b><div class="pictures">{"".join(cells) or "none"}</div></div>'
        for name, cells in rows
    )
    return f'<article class="card"><h3>{escape(one.caption)}</h3>{strips}</article>'


def _picture(image: at.Image, alt: str) -> str:
    return f'<img src="{_data_uri(image)}" alt="{escape(alt)}" width="{len(image)}" height="{len(image)}">'


def _with_z(picture: str, z: SampledLatents, image: at.Image) -> str:
    if z.latents is None:
        return f'<div class="pair">{picture}<p class="faint">z does not parse: {escape(z.problem)}</p></div>'
    if not any(True for _ in shapes_of(drawings_of(z.latents))):  # the picture of z would be the sample once more
        picture = ""
    return f'<div class="pair">{picture}{render_svg(z.latents, _Z_PX, _data_uri(image))}</div>'


def _data_uri(image: at.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(png_bytes(Image.fromarray(image))).decode()
