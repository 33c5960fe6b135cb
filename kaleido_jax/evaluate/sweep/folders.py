"""The measure of a sweep on photographs: captions with classes inside them, which a linear probe tells apart.

The real images are ROOT/CAPTION/MODE/IMAGE. What the models are given is the caption alone; the folders inside it are
its hidden modes.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from kaleido_jax import array_types as at
from kaleido_jax.config.sweep import Sweep
from kaleido_jax.data.crop import square_crop
from kaleido_jax.data.images import read_image
from kaleido_jax.data.sources.base import Example
from kaleido_jax.data.sources.folder import folder_caption, images_among, listed, warn_of_deeper
from kaleido_jax.errors import UserError, user_error
from kaleido_jax.evaluate import modes
from kaleido_jax.evaluate.features.extractor import Extractor, open_extractor
from kaleido_jax.evaluate.metrics.condition import accuracy
from kaleido_jax.evaluate.metrics.probe import Probe, fit_probe
from kaleido_jax.evaluate.sets import Reference, check_counts, measure_set, reference_of
from kaleido_jax.evaluate.sweep.drawing import Drawn
from kaleido_jax.evaluate.sweep.measured import Measured, Modes, diversity
from kaleido_jax.runtime.files import fingerprint
from kaleido_jax.runtime.progress import progress
from kaleido_jax.runtime.text import readable_name

HELD_OUT_EVERY = 3  # of this many images of a mode one tests the probe; the others train it


@dataclass(frozen=True, kw_only=True)
class FolderMeasure:
    """What the probe sees, and sets of the network's features."""

    captions: tuple[str, ...]
    modes: dict[str, Modes]
    about: dict[str, Any]
    protocol: str
    extractor: Extractor
    reference: Reference
    probe: Probe  # over the modes of all captions, in their order
    identity: str  # of all images and labels, which make the probe; its own last bits differ between machines

    @staticmethod
    def open(sweep: Sweep, image_size: int) -> "FolderMeasure":
        """Reads the real images, and trains the probe on two thirds of them.

        Args:
          sweep: its `reference` is the folder.
          image_size: px of the samples, to which the real images are shrunk.

        Raises:
          UserError: no such folder, fewer images than the protocol wants, images that cannot be read, a mode with fewer
            than three, or no feature network.
        """
        found = _folders(Path(sweep.reference).expanduser())
        names = [(caption, mode) for caption, of_caption in found.items() for mode in of_caption]
        paths = [found[caption][mode] for caption, mode in names]
        number = min(sweep.num_reference, sum(map(len, paths)))
        check_counts(sweep.protocol, num_samples=sweep.num_samples, num_reference=number)
        extractor = open_extractor(sweep.extractor, Path(sweep.extractor_path) if sweep.extractor_path else None)
        labels = np.repeat(np.arange(len(names)), [len(each) for each in paths])
        images = _read([path for each in paths for path in each], image_size)
        rows = extractor(images)
        place = np.concatenate([np.arange(len(each)) for each in paths])
        held_out = place % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
        probe = fit_probe(rows[~held_out], labels[~held_out], len(names))
        logits = probe(rows[held_out])
        captions = tuple(found)
        of_caption = np.array([captions.index(caption) for caption, _ in names])
        about = {
            "reader": {
                "accuracy": accuracy(logits, labels[held_out]),
                "accuracy_of_captions": float(
                    (of_caption[logits.argmax(axis=1)] == of_caption[labels[held_out]]).mean()
                ),
                "num_test": int(held_out.sum()),
            }
        }
        chosen = np.linspace(0, len(rows) - 1, number).round().astype(int)
        name = f"{Path(sweep.reference).name} {fingerprint(images[chosen].tobytes())}"
        reference = reference_of(rows[chosen], name=name, split="", identity=extractor.identity)
        return FolderMeasure(
            captions=captions,
            modes={caption: _modes_of(found[caption]) for caption in captions},
            about=about,
            protocol=sweep.protocol,
            extractor=extractor,
            reference=reference,
            probe=probe,
            identity=fingerprint(images.tobytes(), labels.astype(np.int64).tobytes()),
        )

    def __call__(self, drawn: Drawn, sampled_with: Mapping[str, Any]) -> Measured:
        """Right captions and modes by the probe, distances and coverage of sets, diversity of each caption."""
        rows = self.extractor(drawn.pixels)
        sizes = [len(self.modes[caption].names) for caption in self.captions]
        firsts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        read = self.probe(rows).argmax(axis=1)
        own = read - firsts[drawn.captions]
        seen = np.where((own >= 0) & (own < np.array(sizes)[drawn.captions]), own, -1)
        captions = {c: self._caption(c, seen[drawn.captions == i]) for i, c in enumerate(self.captions)}
        names = [name for name in next(iter(captions.values())) if name not in ("samples", "kind_right", "shares")]
        means = {name: _mean([one[name] for one in captions.values()]) for name in names}
        values = {"kind_right": float((seen >= 0).mean())} | {name: v for name, v in means.items() if v is not None}
        identity = self.extractor.identity
        result = measure_set(self.protocol, self.reference, rows, identity=identity, sampled_with=dict(sampled_with))
        values |= diversity(rows, drawn.captions)
        return Measured(
            result=dataclasses.replace(result, values=dict(result.values) | values), captions=captions, seen=seen
        )

    def _caption(self, caption: str, seen: Int[np.ndarray, "n"]) -> dict[str, Any]:
        right = seen[seen >= 0].tolist()
        counted = modes.counts_of(right, np.array(self.modes[caption].shares))
        shares = counted.pop("shares")
        named = dict(zip(self.modes[caption].names, shares, strict=True)) if shares else None
        return {"samples": len(seen), "kind_right": len(right) / max(len(seen), 1), **counted, "shares": named}


def _folders(root: Path) -> dict[str, dict[str, list[Path]]]:
    """caption -> mode -> images, all in the order of their names; hidden ones and those of systems are left out.

    Captions are those that a model is trained with on folders of the same names.
    """
    found: dict[str, dict[str, list[Path]]] = {}
    for folder in (path for path in listed(root) if path != root):
        modes = {mode: images_among(entries) for mode, entries in listed(folder).items() if mode != folder}
        if not modes:
            continue
        caption = folder_caption(folder)
        if caption is None:
            raise user_error(f"the folder {readable_name(str(folder))}", "a caption as its name", "rename it")
        if caption in found:
            raise user_error(f"two folders for {caption!r} in {root}", "one of each caption", "join or rename them")
        warn_of_deeper(modes, folder)
        for mode, images in modes.items():
            if len(images) < HELD_OUT_EVERY:
                raise user_error(f"{len(images)} images in {mode}", f"{HELD_OUT_EVERY} or more", "add some")
        found[caption] = {readable_name(mode.name): images for mode, images in modes.items()}
    if not found:
        do = "set sweep.reference to the folder of the real images"
        raise user_error(f"no folders CAPTION/MODE in {root or 'sweep.reference'}", "ROOT/CAPTION/MODE/IMAGE", do)
    return found


def _read(paths: list[Path], image_size: int) -> at.Images:
    images = []
    with progress("real images", len(paths), "img") as advance:
        for path in paths:
            try:
                example = Example(id=path.name, image=read_image(path), caption="")
            except UserError as error:
                raise user_error(f"{path}: {error}", "an image", "remove it") from error
            images.append(square_crop(example, image_size).image)
            advance(1)
    return np.stack(images)


def _modes_of(images: Mapping[str, list[Path]]) -> Modes:
    counts = np.array([len(each) for each in images.values()])
    return Modes(names=tuple(images), shares=tuple((counts / counts.sum()).tolist()))


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
