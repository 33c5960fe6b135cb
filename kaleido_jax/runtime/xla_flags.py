"""XLA's flags on CPU. Imports no JAX, whose backend reads XLA_FLAGS once, when it starts."""

import functools
import importlib.metadata
import logging
import os
import re
from pathlib import Path

log = logging.getLogger(__name__)


# YNN, XLA's library kernels on CPU, keeps only matrix products. Without it, convolutions' weight gradients run 2.6 to
# 4.3 times faster. Its reductions are wrong in jaxlib 0.10.2: points of examples/figure3.py drawn 2,000 at a time were
# NaN or belonged to no mode, and differed from process to process (tests/runtime/test_xla_flags.py).
CPU_FLAG = "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"
# An unknown flag aborts jax, so these are the versions that it was tried with.
VERSIONS = ("0.10.2", "0.11.2", "0.12.0.1")
# By default these reduce through YNN, with wrong results.
WRONG_REDUCTIONS = ("0.10.2",)


def set_cpu_flag() -> None:
    """Sets CPU_FLAG if JAX will run on CPU, unless the user has set XLA_FLAGS or jaxlib is not one of VERSIONS."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    accelerator = any(Path(p).exists() for p in ("/dev/nvidia0", "/dev/accel0", "/dev/vfio/0"))
    on_cpu = platforms == "cpu" or (not platforms and not accelerator)
    if on_cpu and "XLA_FLAGS" not in os.environ and _jaxlib() in VERSIONS:
        os.environ["XLA_FLAGS"] = CPU_FLAG


def reduces_wrongly(flags: str, jaxlib: str) -> bool:
    """Whether this jaxlib on CPU, under these XLA_FLAGS, runs reductions through YNN with wrong results."""
    chosen = re.findall(r"--xla_cpu_experimental_ynn_fusion_type=(\S*)", flags)
    through_ynn = not chosen or "LIBRARY_FUSION_TYPE_REDUCE" in chosen[-1].split(",")
    return through_ynn and jaxlib in WRONG_REDUCTIONS


def warn_of_wrong_reductions(backend: str) -> None:
    """Warns once per process if `reduces_wrongly` holds here; `backend` is jax.default_backend()."""
    flags = os.environ.get("XLA_FLAGS", "")
    if backend == "cpu" and reduces_wrongly(flags, _jaxlib()):
        _warn_once(flags)


@functools.cache
def _warn_once(flags: str) -> None:
    log.warning(
        "XLA_FLAGS=%r lets jaxlib %s reduce through YNN on CPU, so samples may be wrong or NaN; expected no "
        "LIBRARY_FUSION_TYPE_REDUCE; add %s to it before jax starts",
        flags,
        _jaxlib(),
        CPU_FLAG,
    )


def _jaxlib() -> str:
    return importlib.metadata.version("jaxlib")
