"""Report of a job, report.html beside a manifest: counts, failures, agreement with human labels, a sample of images.

One self-contained file without scripts: images are embedded. All text from the data is escaped.
"""

import base64
import io
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from kaleido_jax.annotate.job.agreement import SMALLEST_PX
from kaleido_jax.annotate.job.tally import NARROW
from kaleido_jax.data.records import Manifest, Record, Records, read_manifest
from kaleido_jax.latents.render.svg import render_svg
from kaleido_jax.latents.types import Latents
from kaleido_jax.runtime.files import write_atomically

REPORT = "report.html"
_DRAWN_PX = 320  # side of a picture, about a card's width on a phone
_LOSSLESS_UP_TO_PX = 64  # larger pictures are shown as JPEG, a tenth of the bytes
_REASONS_SHOWN, _FAILURES_SHOWN = 30, 20
_CHARACTERS_SHOWN, _NARROW_SHOWN = 20, 3
_NO_CONDITION = "a model of such images cannot be told what to draw"

_STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #1a1c22; --soft: #5b6270; --line: #d9dde4;
  --accent: #0b6bcb }
@media (prefers-color-scheme: dark) { :root { --page: #101218; --card: #1a1d25; --ink: #eceef2; --soft: #a2a9b6;
  --line: #323845; --accent: #6db3f8 } }
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif;
  overflow-wrap: break-word }
main { max-width: 1280px; margin: 0 auto; padding: 24px 16px 48px }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 4px }
h2 { font-size: 1.15rem; margin: 36px 0 12px }
p { margin: 0 }
.soft { color: var(--soft) }
.tiles { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 150px), 1fr));
  margin-top: 20px }
.tile, .card, .table { background: var(--card); border: 1px solid var(--line); border-radius: 10px }
.tile { padding: 12px 14px }
.tile b { display: block; font-size: 1.45rem; line-height: 1.25; font-variant-numeric: tabular-nums }
.table { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-size: .92rem }
th, td { text-align: left; vertical-align: top; padding: 8px 14px; border-top: 1px solid var(--line) }
thead th { border-top: 0; color: var(--soft); font-weight: 500; white-space: nowrap }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; width: 1% }
.cards { display: grid; gap: 16px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 270px), 1fr));
  align-items: start }
.card { overflow: hidden }
.card svg.kaleido-z { display: block; width: 100%; height: auto }
.card div { padding: 12px 14px 14px; display: grid; gap: 8px; overflow-wrap: anywhere }
.card h3 { margin: 0; font-size: 1rem; line-height: 1.35 }
.card small { color: var(--soft); line-height: 1.4 }
.voken { display: flex; flex-wrap: wrap; gap: 4px; list-style: none; margin: 0; padding: 0;
  font-size: .8rem; font-variant-numeric: tabular-nums }
.voken li { border: 1px solid var(--line); border-radius: 5px; padding: 0 6px }
.remarks { margin: 0; padding: 12px 14px 12px 34px; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; display: grid; gap: 6px }
#bare { accent-color: var(--accent); margin: 0 8px 14px 0 }
#bare:checked ~ .cards .card:not(.bare) { display: none }
details { margin-top: 12px } summary { cursor: pointer; color: var(--accent) }
"""


def write_report(folder: Path, *, num_samples: int, seed: int) -> Path:
    """Writes folder/report.html on the records that folder/manifest.json lists; the same records give the same file.

    Args:
      folder: of the manifest.
      num_samples: images to show; all, where there are fewer.
      seed: chooses them.

    Raises:
      UserError: the manifest or a record is missing or damaged.
    """
    manifest = read_manifest(folder)
    records = Records(folder, manifest)
    chosen = [records[index] for index in sample_indices(len(records), num_samples, seed)]
    path = folder / REPORT
    write_atomically(path, "".join(_page(manifest, chosen)).encode())
    return path


def sample_indices(count: int, num_samples: int, seed: int) -> list[int]:
    """Which of `count` records are shown: a function of the seed, in their order."""
    rng = np.random.default_rng((seed, zlib.crc32(b"annotate/report")))
    return sorted(int(i) for i in rng.choice(count, min(num_samples, count), replace=False))


def summary(manifest: Manifest) -> list[str]:
    """The counts, what was left out, and the agreement in lines for a terminal."""
    part = f"{manifest.source['part']}: " if "part" in manifest.source else ""
    lines = [f"{part}{_count(manifest.num_records, 'record')}, {_count(manifest.left_out, 'image')} left out"]
    lines += [f"  {what}: {value}" for what, value in content_rows(manifest)]
    lines += [f"  {value}" for value in remarks(manifest)]
    if manifest.reasons:
        lines.append(f"{_count(sum(manifest.reasons.values()), 'failure')}:")
    lines += [f"  {count:,} x {reason}" for reason, count in list(manifest.reasons.items())[:_REASONS_SHOWN]]
    return lines + [f"{what}: {value}" for what, value, _ in agreement_rows(manifest)]


def content_rows(manifest: Manifest) -> list[tuple[str, str]]:
    """(what, how much of it) of each segment, and the longest caption and latents."""
    rows, objects = [], manifest.tally.get("objects", {})
    for segment, count in manifest.counts.items():
        if segment not in objects:
            rows.append((segment, _count(count, "image")))
            continue
        images = {int(number): count for number, count in objects[segment].items()}
        total, without = sum(n * count for n, count in images.items()), images.get(0, 0)
        have = f"{_count(count - without, 'image')} with objects, {without:,} without"
        each = f"{total / max(count, 1):.1f} an image, at most {max(images)}"
        rows.append((segment, f"{have}; {_count(total, 'object')}, {each}"))
    if classes := class_counts(manifest):
        name, least = classes[-1]
        counts = f"{least:,} ({name})" if least == classes[0][1] else f"{least:,} ({name}) to {classes[0][1]:,}"
        rows.append(("classes", f"{len(classes):,}, of {counts} images each"))
    for what, field in (("caption", "data.max_caption_tokens"), ("latents", "latents.max_latents_tokens")):
        if what in manifest.limits:
            names = [name for name in manifest.max_tokens if (name == "caption") == (what == "caption")]
            longest = max((manifest.max_tokens[name] for name in names), default=0)
            rows.append((f"longest {what}", f"{_count(longest, 'token')}; {field} = {manifest.limits[what]}"))
    return rows


def class_counts(manifest: Manifest) -> list[tuple[str, int]]:
    """(class, images) from the most to the fewest; [] where there is one, or the captions are not those of classes."""
    counts = manifest.tally.get("classes", {})
    whole = len(counts) > 1 and sum(counts.values()) == manifest.num_records
    return sorted(counts.items(), key=lambda one: (-one[1], one[0])) if whole else []


def remarks(manifest: Manifest) -> list[str]:
    """What may be wrong with the records: no captions or labels, lost to a limit or vocabulary, photos of odd shape."""
    lines, tally = [], manifest.tally
    if manifest.again:
        lost = f"{_count(manifest.again, 'image')} left out, since the server had no answer"
        lines.append(f"{lost}: the same command asks again")
    if count := tally.get("empty", {}).get("caption", 0):
        lines.append(f"{_count(count, 'image')} without a caption: {_NO_CONDITION}")
    for what, field in (("caption", "data.max_caption_tokens"), ("latents", "latents.max_latents_tokens")):
        if lengths := {int(tokens): count for tokens, count in tally.get("too_long", {}).get(what, {}).items()}:
            count = sum(lengths.values())
            lost = f"{_count(count, 'image')} left out, since {'its' if count == 1 else 'their'} {what} is too long"
            lines.append(f"{lost}, {max(lengths)} tokens at most: {field} = {max(lengths)} keeps all")
    for what, count in tally.get("unknown", {}).items():
        characters = tally["characters"][what]
        most = sorted(characters, key=lambda c: (-characters[c], c))[:_CHARACTERS_SHOWN]
        named = " ".join(most) + (" ..." if len(characters) > len(most) else "")
        done = "read as <unk>" if what == "caption" else "were dropped"
        texts = _count(count, what if what == "caption" else f"{what} segment")
        lines.append(f"{texts} with characters that the vocabulary lacks, which {done}: {named}")
    for segment, count in tally.get("dropped", {}).items():
        lost = f"{_count(count, 'object')} left out of {segment}"
        lines.append(f"{lost}, since the vocabulary has no character of {'its' if count == 1 else 'their'} phrase")
    if count := tally.get("nameless", {}).get("label", 0):
        lines.append(f"{_count(count, 'labeled object')} without a readable label, of which no phrase can be made")
    shape, size = tally.get("shape", {}), manifest.source["image_size"]
    if count := shape.get("narrow", 0):
        named = [f"{found['id']}, {found['width']}x{found['height']} px" for found in manifest.narrow[:_NARROW_SHOWN]]
        lines.append(
            f"{_count(count, 'photo')} more than {NARROW} times as long as wide, of which only the middle square is "
            f"used ({'; '.join(named)}{'; ...' if count > len(named) else ''})"
        )
    if count := shape.get("enlarged", 0):
        lines.append(f"{_count(count, 'photo')} enlarged, with a side of less than {size} px")
    return lines


def agreement_rows(manifest: Manifest) -> list[tuple[str, str, str]]:
    """(what, value, how it is measured) of each agreement with human labels."""
    rows, found = [], manifest.agreement
    for kind, plural, whose in (("box", "boxes", "boxes"), ("ellipse", "ellipses", "masks")):
        if f"{kind}_objects" not in found:
            continue
        objects = f"{found[f'{kind}_objects']:,} objects over {SMALLEST_PX}x{SMALLEST_PX} px of the crop"
        if f"{kind}_iou_median" in found:
            rows.append((f"{kind} IoU with human {whose}, median", f"{found[f'{kind}_iou_median']:.3f}", objects))
        share = f"{100 * found[f'{kind}_found']:.1f} %"
        rows.append((f"human {whose} that meet one of z's {plural}", share, f"{objects}, paired one to one"))
    return rows


# ---------------------------------------------------------------------------------------------- the page
def _page(manifest: Manifest, chosen: list[Record]) -> Iterator[str]:
    names = (manifest.source["name"], manifest.source["split"], manifest.source.get("part"))
    title = " / ".join(part for part in names if part)
    yield '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>Annotation of {escape(title)}</title><style>{_STYLE}</style></head><body><main>"
    yield f"<h1>Annotation of {escape(title)}</h1>"
    size, shards = manifest.source["image_size"], len(manifest.shards)
    megabytes = sum(shard.bytes for shard in manifest.shards) / 1e6
    yield f'<p class="soft">{size}x{size} px, {_count(shards, "shard")}, {megabytes:,.1f} MB, '
    yield f"started {escape(manifest.date)} (UTC)</p>"
    tiles = [("records", manifest.num_records), ("images left out", manifest.left_out), *_with_objects(manifest)]
    yield '<div class="tiles">'
    yield from (f'<div class="tile"><b>{number:,}</b>{escape(name)}</div>' for name, number in tiles)
    yield "</div>"
    yield "<h2>What the records hold</h2>"
    yield from _table(("what", "how much"), content_rows(manifest))
    if classes := class_counts(manifest):
        yield f"<details><summary>Images of each of the {len(classes):,} classes</summary>"
        yield from _table(("class", "images"), [(name, _Number(f"{number:,}")) for name, number in classes])
        yield "</details>"
    if lines := remarks(manifest):
        yield '<h2>Worth a look</h2><ul class="remarks">'
        yield from (f"<li>{escape(line)}</li>" for line in lines)
        yield "</ul>"
    if rows := agreement_rows(manifest):
        yield "<h2>Agreement with people</h2>"
        yield from _table(("measure", "value", "over"), [(w, _Number(v), o) for w, v, o in rows])
    yield "<h2>Who made the latents</h2>"
    yield from _table(("segment", "by"), [(s, _provenance(made_by)) for s, made_by in manifest.provenance.items()])
    yield from _failures(manifest)
    what = f"{len(chosen):,} of {manifest.num_records:,} images, at random"
    yield f"<h2>{what if len(chosen) < manifest.num_records else 'All images'}</h2>"
    if bare := sum(_is_bare(record) for record in chosen):
        label = f"only those without a box or ellipse ({bare:,})"
        yield f'<input type="checkbox" id="bare"><label for="bare">{label}</label>'
    yield '<div class="cards">'
    for record in chosen:
        yield from _card(record)
    yield "</div></main></body></html>\n"


def _with_objects(manifest: Manifest) -> Iterator[tuple[str, int]]:
    """(what, number) for the tiles of each segment."""
    for segment, count in manifest.counts.items():
        without = manifest.tally.get("objects", {}).get(segment, {}).get("0", 0)
        listed = segment in manifest.tally.get("objects", {})
        yield (f"with {segment} objects" if listed else segment), count - without


class _Number(str):
    """A right-aligned cell."""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield '<div class="table"><table><thead><tr>'
    yield from (f"<th>{escape(cell)}</th>" for cell in head)
    yield "</tr></thead><tbody>"
    for row in rows:
        cells = ((' class="number"' if isinstance(cell, _Number) else "", escape(cell)) for cell in row)
        yield "<tr>" + "".join(f"<td{kind}>{cell}</td>" for kind, cell in cells) + "</tr>"
    yield "</tbody></table></div>"


def _provenance(made_by: Mapping[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in made_by.items())


def _failures(manifest: Manifest) -> Iterator[str]:
    yield "<h2>Failures</h2>"
    if not manifest.reasons:
        yield "<p>None.</p>"
        return
    shown = list(manifest.reasons.items())[:_REASONS_SHOWN]
    rest = sum(manifest.reasons.values()) - sum(count for _, count in shown)
    rows = [(_Number(f"{count:,}"), reason) for reason, count in shown]
    yield from _table(("count", "segment: reason"), rows + ([(_Number(f"{rest:,}"), "others")] if rest else []))
    first = [(f["id"], f"{f['segment']}: {f['reason']}") for f in manifest.failures[:_FAILURES_SHOWN]]
    yield f"<details><summary>The first {len(first)}; all are in the files beside the shards</summary>"
    yield from _table(("image", "segment: reason"), first)
    yield "</details>"


def _is_bare(record: Record) -> bool:
    """Whether it could have boxes or ellipses and has none."""
    lists = [found for found in (record.latents.bbox, record.latents.blob) if found is not None]
    return bool(lists) and not any(lists)


def _card(record: Record) -> Iterator[str]:
    z = record.latents
    yield f'<article class="card{" bare" * _is_bare(record)}">'
    yield render_svg(Latents(bbox=z.bbox, blob=z.blob), _DRAWN_PX, _data_url(record.image))
    yield f"<div><h3>{escape(record.caption) or '(no caption)'}</h3>"
    if z.text is not None:
        yield f"<p>{escape(z.text)}</p>"
    if z.voken is not None:
        yield f'<ul class="voken" aria-label="vokens">{"".join(f"<li>{v}</li>" for v in z.voken)}</ul>'
    below = [record.id, f"shorter side of the photo {record.shorter_side_px} px" if record.shorter_side_px else ""]
    yield f"<small>{'<br>'.join(escape(line) for line in (*below, record.credit) if line)}</small></div></article>"


def _data_url(png: bytes) -> str:
    with Image.open(io.BytesIO(png)) as image:
        if max(image.size) > _LOSSLESS_UP_TO_PX:
            out = io.BytesIO()
            image.convert("RGB").save(out, "jpeg", quality=88)
            return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
