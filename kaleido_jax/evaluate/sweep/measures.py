"""Which measure a sweep takes."""

from pathlib import Path

from kaleido_jax.config.sweep import Sweep
from kaleido_jax.errors import user_error
from kaleido_jax.evaluate.sets import SET_PROTOCOLS, check_counts
from kaleido_jax.evaluate.sweep.folders import FolderMeasure
from kaleido_jax.evaluate.sweep.measured import Measure
from kaleido_jax.evaluate.sweep.scenes import SceneMeasure


def open_measure(sweep: Sweep, image_size: int, folder: Path) -> Measure:
    """The measure of the sweep's protocol: scenes of emoji for its own, else a folder of real images.

    Args:
      sweep: what to measure.
      image_size: px of the samples.
      folder: keeps a reader that is trained for that size.

    Raises:
      UserError: no such protocol, or fewer images than it wants.
    """
    if sweep.protocol not in SET_PROTOCOLS:
        known = ", ".join(SET_PROTOCOLS)
        raise user_error(f"sweep.protocol = {sweep.protocol!r}", f"one of {known}", "choose one of them")
    check_counts(sweep.protocol, num_samples=sweep.num_samples, num_reference=sweep.num_reference)
    if SET_PROTOCOLS[sweep.protocol].extractors == ("sprite-reader",):
        return SceneMeasure.open(sweep, image_size, folder)
    if not sweep.reference:
        found = f"sweep.protocol = {sweep.protocol!r} without sweep.reference"
        raise user_error(found, "a folder ROOT/CAPTION/MODE/IMAGE of real images", "set it")
    return FolderMeasure.open(sweep, image_size)
