"""Models of annotators: whether the files and packages that a config names are there, before a job writes anything."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from kaleido_jax.config.schema import Annotate
from kaleido_jax.errors import user_error

_TORCH = ("torch", "transformers")
PACKAGES = {"onnx": ("onnxruntime",), "transformers": _TORCH, "sam": _TORCH, "seed": _TORCH, "openai": ("openai",)}


def check_models(annotate: Annotate) -> None:
    """Checks that the models of all segments that a job makes are on this machine; loads none but a detector.

    Raises:
      UserError: a model is not set or is not there, or a package that runs it is not installed.
    """
    for field, kind, path, needed in _named(annotate):
        if needed and not path:
            raise user_error(f"config.annotate.{field} = {path!r}", f"the model for {kind!r}", "set it to its path")
        if path and not Path(path).exists():
            found = f"config.annotate.{field} = {path!r}, which is not there"
            raise user_error(found, f"the model for {kind!r}", "correct the path, or fetch the model")
        missing = [name for name in PACKAGES.get(kind, ()) if importlib.util.find_spec(name) is None]
        if missing:
            found = f"config.annotate.{field} for {kind!r} without {' and '.join(missing)}"
            raise user_error(found, "the package", f"pip install {' '.join(missing)}")
    if "bbox" in annotate.segments and annotate.bbox.kind == "onnx":
        from kaleido_jax.annotate.vision.detector import open_detector

        open_detector(annotate)  # its class names must fit; small, unlike the models of the others


def _named(annotate: Annotate) -> Iterator[tuple[str, str, str | None, bool]]:
    """(field, kind, path, whether it must be set) of each model."""
    for segment in annotate.segments:
        group = getattr(annotate, segment)
        if group.kind == "openai":  # its model is a name on a server
            yield f"{segment}.kind", group.kind, None, False
        else:
            yield f"{segment}.model", group.kind, group.model, group.kind in PACKAGES
    if "voken" in annotate.segments and annotate.voken.kind == "quantizer":
        feature = annotate.voken.feature
        yield "voken.feature_model", feature, annotate.voken.feature_model, feature != "pixels"
