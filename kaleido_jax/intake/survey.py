"""A survey of a data set: how many images of which sizes, which captions and labels, and what is wrong with some."""

import statistics
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from kaleido_jax.annotate.annotator import Failure
from kaleido_jax.annotate.job.tally import NARROW
from kaleido_jax.annotate.labels import LabeledBlobs, LabeledBoxes, LabeledText
from kaleido_jax.data.crop import square_crop
from kaleido_jax.data.images import IMAGE_SUFFIXES
from kaleido_jax.data.sources import open_source
from kaleido_jax.data.sources.base import Example, Source, with_uniform_words
from kaleido_jax.errors import UserError, user_error
from kaleido_jax.intake.recognize import Found
from kaleido_jax.latents.types import Latents
from kaleido_jax.runtime.progress import progress
from kaleido_jax.runtime.text import readable, uniform

MOST = 2_000  # images that are read; of larger data these are spread evenly
LABELED = 0.9  # share of images with boxes from which on boxes become a segment, since the others are left out
_CROP_PX = 256  # on which boxes and masks are measured


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one image contributes to the sizes of a config."""

    id: str
    size_px: tuple[int, int]  # width, height
    caption: str
    latents: Latents  # of the labels that the data have: text, bbox, blob


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What was found in a data set."""

    num_images: int  # that the source lists
    looks: tuple[Look, ...]  # of the images that were read, at most MOST
    flaws: dict[str, tuple[int, str]]  # reason -> images that cannot be used, the id of the first
    class_counts: dict[str, int]  # class -> images; {} where images have no class

    @property
    def shorter_sides_px(self) -> list[int]:
        """Of each image that was read, ascending."""
        return sorted(min(look.size_px) for look in self.looks)

    @property
    def narrow(self) -> list[Look]:
        """Images whose square crop loses most of them."""
        return [look for look in self.looks if max(look.size_px) > NARROW * min(look.size_px)]

    def share_with(self, segment: str) -> float:
        """Share of the images whose labels hold a segment."""
        return sum(getattr(look.latents, segment) is not None for look in self.looks) / len(self.looks)

    @property
    def captions(self) -> list[str]:
        """Different captions, the most frequent first."""
        return [caption for caption, _ in Counter(look.caption for look in self.looks if look.caption).most_common()]


def survey(data: Found, max_boxes: int, *, show: bool = True) -> Survey:
    """Reads up to MOST images of a source with their labels.

    Args:
      data: what it is.
      max_boxes: of an image, that its labels are measured with.
      show: a bar or log lines of progress.

    Raises:
      UserError: the source cannot be opened, or no image can be read.
    """
    return _survey(open_source(data.data), Path(data.data.root or ""), max_boxes, show)


def _survey(source: Source, root: Path, max_boxes: int, show: bool) -> Survey:
    count = min(len(source), MOST)
    looks: list[Look] = []
    reasons: Counter[str] = Counter()
    first: dict[str, str] = {}
    with progress("looking at the images", count, "img", show) as advance:
        for index in (i * len(source) // count for i in range(count)):
            try:
                looks.append(_look(source[index], max_boxes))
            except Exception as error:  # noqa: BLE001  # one image is one flaw, whatever it raises
                reason = str(error).split(";")[0] if isinstance(error, UserError) else type(error).__name__
                reasons[reason] += 1
                first.setdefault(reason, readable(source.id(index)))
            advance(1)
    if not looks:
        reason = reasons.most_common(1)[0][0] if reasons else "it is empty"
        raise user_error(
            f"none of {len(source)} images of {root} can be used ({reason})", "at least one", "correct or fetch them"
        )
    flaws = {reason: (number, first[reason]) for reason, number in reasons.most_common()}
    return Survey(num_images=len(source), looks=tuple(looks), flaws=flaws, class_counts=_class_counts(source))


def _look(example: Example, max_boxes: int) -> Look:
    height, width = example.image.shape[:2]
    example = with_uniform_words(example)
    if example.objects:
        example = square_crop(example, _CROP_PX)
    latents = Latents()
    for annotator in (LabeledText(), LabeledBoxes(max_boxes), LabeledBlobs(max_boxes)):
        [answer] = annotator([example], [latents])
        if not isinstance(answer, Failure):
            latents = latents.replace(**{s: getattr(answer, s) for s in annotator.segments})
    return Look(id=readable(example.id), size_px=(width, height), caption=example.caption, latents=latents)


def _class_counts(source: Source) -> dict[str, int]:
    if not source.class_names:
        return {}
    try:
        labels = Counter(source.label(index) for index in range(len(source)))
    except UserError:  # tar shards may hold images without a class
        return {}
    counts: Counter[str] = Counter()
    for number, name in enumerate(source.class_names):  # several classes may have one name
        counts[uniform(name)] += labels[number]
    return dict(counts)


def _other_files(root: Path) -> list[str]:
    """Names of the files in a folder of class folders that are not images, each once."""
    found = (path for path in root.glob("**/*") if path.suffix.lower() not in IMAGE_SUFFIXES and path.is_file())
    return sorted({readable(path.name) for path in found})


def lines(found: Survey, data: Found) -> list[str]:
    """The survey for people."""
    root = Path(data.data.root or "")
    looked = f", of which {len(found.looks) + _bad(found):,} were looked at" if found.num_images > MOST else ""
    out = [f"{root}: {data.what}, {found.num_images:,} images{looked}", *(f"  {note}" for note in data.notes)]
    if len(found.class_counts) > 1:
        shown = ", ".join(f"{name} {number}" for name, number in [*found.class_counts.items()][:12])
        more = f" and {len(found.class_counts) - 12} more" if len(found.class_counts) > 12 else ""
        out.append(f"  {len(found.class_counts)} classes: {shown}{more}")
    sides = found.shorter_sides_px
    out.append(f"  shorter sides of {sides[0]} to {sides[-1]} px, {statistics.median_low(sides)} in the middle")
    for name, segment in (("boxes", "bbox"), ("masks", "blob")):
        if share := found.share_with(segment):
            rest = f"; with the segment {segment} (--segments) the others are left out" if share < LABELED else ""
            out.append(f"  {name} in {share:.0%} of the images{rest}")
    without = sum(not look.caption for look in found.looks)
    if without:
        out.append(
            f"  {without} of {len(found.looks)} images have no caption: a model of such images cannot be told what "
            "to draw; with the segment text they are left out"
        )
    if narrow := found.narrow:
        out.append(
            f"  {len(narrow)} x narrow: the square crop keeps less than a quarter (e.g. {narrow[0].id}, "
            f"{' x '.join(map(str, narrow[0].size_px))} px)"
        )
    for reason, (number, first) in [*found.flaws.items()][:6]:
        out.append(f"  {number} x {reason} (e.g. {first}): left out")
    if data.data.source == "folder" and (others := _other_files(root / data.data.split)):
        out.append(f"  files of other kinds are ignored: {', '.join(others[:6])}{' ...' * (len(others) > 6)}")
    return out


def _bad(found: Survey) -> int:
    return sum(number for number, _ in found.flaws.values())
