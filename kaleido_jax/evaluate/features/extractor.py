"""Extractors: feature networks by name, with the identity that every number measured on them carries.

A network sees batches of one size, whose rows are split over this process's devices; blank images fill the last one.
So the features of an image do not depend on the others, up to the rounding of float32.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Float32, UInt8

from kaleido_jax.array_types import Images
from kaleido_jax.errors import nearest, user_error
from kaleido_jax.evaluate.features import efficientnet, inception, models_by_path
from kaleido_jax.evaluate.features.network import FeatureRows, Network, Params, fold, run
from kaleido_jax.evaluate.features.resize import RULES, Rule, resized
from kaleido_jax.evaluate.sprite_reader import SHIPPED_PX, SpriteReader, open_reader
from kaleido_jax.interop.files.weights import open_weights, read_float32
from kaleido_jax.latents.tokenizer import round_up
from kaleido_jax.runtime.files import fingerprint
from kaleido_jax.runtime.xla_flags import warn_of_wrong_reductions

BATCH = 64  # images that a network sees at once, rounded up to a multiple of the devices
Rows = Float32[np.ndarray, "n d"]  # features, one row for each image


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """images -> features."""

    name: str
    weights: str  # 16 hex digits that change with any weight
    resize: str  # rule and side, e.g. "clean-fid 299"
    of: Callable[[UInt8[np.ndarray, "b h w 3"]], Float[Any, "b d"]]  # one batch
    batch: int = BATCH
    head: tuple[Float32[np.ndarray, "classes d"], Float32[np.ndarray, "classes"]] | None = None  # of its classifier

    @property
    def identity(self) -> dict[str, str]:
        """What features depend on, for a stamp."""
        return {"extractor": self.name, "weights": self.weights, "resize": self.resize}

    def __call__(self, images: Images | Iterable[Images]) -> Rows:
        """Features of images, or of chunks of them; those of one chunk have one size.

        Raises:
          UserError: no images, or a chunk that is no uint8 array of shape (n, h, w, 3).
        """
        parts = list(self.stream([images] if isinstance(images, np.ndarray) else images))
        if not parts:
            raise user_error("no images", "some to measure", "check the folder or the number of samples")
        return np.concatenate(parts)

    def stream(self, chunks: Iterable[Images]) -> Iterator[Rows]:
        """Features batch by batch, for sets that are larger than memory.

        Raises:
          UserError: a chunk that is no uint8 array of shape (n, h, w, 3).
        """
        for chunk in chunks:
            _check_images(chunk)
            for start in range(0, len(chunk), self.batch):
                rows = chunk[start : start + self.batch]
                blank = np.zeros((self.batch - len(rows), *rows.shape[1:]), np.uint8)
                yield np.asarray(self.of(np.concatenate([rows, blank])), np.float32)[: len(rows)]

    def classify(self, features: Rows) -> Float[np.ndarray, "n classes"]:
        """The logits of the network's own classifier.

        Raises:
          UserError: it has none.
        """
        if self.head is None:
            raise user_error(f"{self.name} has no classifier", "one of " + ", ".join(_BUILT_IN), "choose one of them")
        weight, bias = self.head
        return features.astype(np.float64) @ weight.T.astype(np.float64) + bias


def open_extractor(
    name: str, path: Path | None = None, *, resize: Rule = "clean-fid", side_px: int | None = None, batch: int = BATCH
) -> Extractor:
    """A feature network by name.

    Args:
      name: "efficientnet-lite0", "inception-v3" (in the form of FID), "sprite-reader" (of the emoji scenes), or "onnx"
        or "transformers" for any image model, e.g. DINOv2 or CLIP.
      path: its weights (.npz, .safetensors, or torch's); the .onnx file; the Hugging Face folder. Nothing is
        downloaded. EfficientNet-Lite0 needs none if its package is installed, the sprite reader takes none.
      resize: whose way of resizing.
      side_px: of the network's input; by default 128 for EfficientNet-Lite0, 299 for Inception-v3, and for others what
        the file says. The sprite reader takes means of squares of pixels, by its own rule.
      batch: images at once, for speed and memory only.

    Raises:
      UserError: an unknown name or way of resizing, a side or batch below 1, or weights that are missing or not of that
        network.
    """
    if resize not in RULES:
        near = nearest(resize, RULES)
        do = f"did you mean {near!r}?" if near else "choose one of them"
        raise user_error(f"resize = {resize!r}", f"one of {', '.join(RULES)}", do)
    for what, number in (("side_px", side_px), ("batch", batch)):
        if number is not None and number < 1:
            raise user_error(f"{what} = {number}", "1 or more", "correct it")
    known = (*_BUILT_IN, *models_by_path.KINDS)
    if name not in known:
        near = nearest(name, known)
        do = f"did you mean {near!r}?" if near else "choose one of them"
        raise user_error(f"extractor {name!r}", f"one of {', '.join(known)}", do)
    if name in _BUILT_IN:
        return _BUILT_IN[name](path, resize, side_px, batch)
    if path is None:
        raise user_error(f"extractor {name!r} without a path", "the model's file or folder", "give its path")
    model = models_by_path.KINDS[name](path, side_px)

    def of(images: UInt8[np.ndarray, "b h w 3"]) -> Float[Any, "b d"]:
        return model.of(np.asarray(_resized(images, model.side_px, resize)))

    rule = f"{resize} {model.side_px}"
    return Extractor(name=model.name, weights=model.fingerprint, resize=rule, of=of, batch=batch)


def _check_images(chunk: Any) -> None:
    dtype, shape = getattr(chunk, "dtype", None), getattr(chunk, "shape", ())
    if dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3:
        found = f"images of {dtype} {shape}" if dtype is not None else f"images as a {type(chunk).__name__}"
        raise user_error(found, "uint8 from 0 to 255 of shape (n, h, w, 3)", "convert them; of one image, give x[None]")


# ------------------------------------------------------------------------------------- networks in this package
def _efficientnet(path: Path | None, rule: Rule, side_px: int | None, batch: int) -> Extractor:
    path = efficientnet.packaged_weights() if path is None else path
    side_px = efficientnet.SIDE_PX if side_px is None else side_px
    name, network, head = efficientnet.NAME, efficientnet.efficientnet_lite0, efficientnet.HEAD
    return _built_in(name, path, rule, side_px, batch, network, efficientnet.normalize, head)


def _inception(path: Path | None, rule: Rule, side_px: int | None, batch: int) -> Extractor:
    if path is None:
        do = "fetch pt_inception-2015-12-05-6726825d.pth of pytorch-fid and give its path"
        raise user_error("no weights of Inception-v3", "the file of FID's network", do)
    side_px = inception.SIDE_PX if side_px is None else side_px
    normalize = functools.partial(inception.normalize, rule=rule)
    return _built_in(inception.NAME, path, rule, side_px, batch, inception.inception_v3, normalize, inception.HEAD)


def _sprite_reader(path: Path | None, rule: Rule, side_px: int | None, batch: int) -> Extractor:
    if path is not None or side_px not in (None, SHIPPED_PX):
        found = f"the sprite reader with a path or {side_px} px"
        raise user_error(found, f"the shipped one of {SHIPPED_PX} px", "leave both out")
    return reader_extractor(open_reader(SHIPPED_PX, Path()), batch)


def reader_extractor(reader: SpriteReader, batch: int = BATCH) -> Extractor:
    """The last hidden layer of a reader of the emoji scenes; its classes are the sprites."""
    head = reader.params["params"]["Dense_2"]
    return Extractor(
        name="sprite-reader",
        weights=fingerprint(
            json.dumps(reader.metadata, sort_keys=True), *(leaf.tobytes() for leaf in jax.tree.leaves(reader.params))
        ),
        resize=f"means {reader.image_size}",
        of=reader.hidden,
        batch=batch,
        head=(np.asarray(head["kernel"]).T, np.asarray(head["bias"])),
    )


_BUILT_IN = {efficientnet.NAME: _efficientnet, inception.NAME: _inception, "sprite-reader": _sprite_reader}


def _built_in(
    name: str,
    path: Path,
    rule: Rule,
    side_px: int,
    batch: int,
    network: Network,
    normalize: Callable[[Float[Array, "b h w 3"]], Float[Array, "b h w 3"]],
    head: str,
) -> Extractor:
    warn_of_wrong_reductions(jax.default_backend())
    tensors = read_float32(open_weights(path, f"the weights of {name}"))
    devices = np.asarray(jax.local_devices())
    everywhere, split = (NamedSharding(Mesh(devices, ("data",)), spec) for spec in (P(), P("data")))
    params = jax.device_put(fold(network, tensors, path, name), everywhere)

    @jax.jit
    def features(params: Params, images: UInt8[Array, "b h w 3"]) -> FeatureRows:
        return run(network, params, normalize(resized(images, side_px, rule)))

    weight, bias = tensors.get(f"{head}.weight"), tensors.get(f"{head}.bias")
    # The running count of batches is in the original file, but not in copies of it, and nothing depends on it.
    named = ((key, tensors[key]) for key in sorted(tensors) if not key.endswith("num_batches_tracked"))
    published = name == inception.NAME and side_px == inception.SIDE_PX
    published = published and hashlib.sha256(path.read_bytes()).hexdigest().startswith(inception.FID_SHA256)
    return Extractor(
        name=inception.FID_NAME if published else name,
        weights=fingerprint(*(part for key, array in named for part in (key, np.ascontiguousarray(array).tobytes()))),
        resize=f"{rule} {side_px}",
        of=lambda images: features(params, jax.device_put(images, split)),
        batch=round_up(batch, len(devices)),
        head=None if weight is None or bias is None else (weight, bias),
    )


_resized = jax.jit(resized, static_argnums=(1, 2))
