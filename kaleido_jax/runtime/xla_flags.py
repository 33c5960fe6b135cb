"""What a process sets before JAX starts: XLA's flags on CPU, the allocator and the compilation cache.

Imports no JAX, whose backend reads XLA_FLAGS once, when it starts.
"""

import ctypes
import functools
import importlib.metadata
import logging
import os
import platform
import re
import sys
import zlib
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
# glibc's mallopt: M_ARENA_MAX = 1, M_MMAP_THRESHOLD = 1 GiB, M_TRIM_THRESHOLD = all.
_KEEP = ((-8, 1), (-3, 2**30), (-1, 2**31 - 1))


def before_backend() -> None:
    """`set_cpu_flag`, `keep_memory` and `keep_compiled`, unless JAX's backend has started.

    The rooms that compute call it when they are imported. Once the backend runs, a flag that is set too late would
    change nothing and hide the warning that it is missing.
    """
    if not backend_started():
        set_cpu_flag()
        keep_memory()
        keep_compiled()


def backend_started() -> bool:
    """Whether JAX has read XLA_FLAGS: not yet when it is imported, but when it first needs a device."""
    bridge = sys.modules.get("jax._src.xla_bridge")  # no public module tells it without starting the backend
    return bridge is not None and bridge.backends_are_initialized()


def set_cpu_flag() -> None:
    """Sets CPU_FLAG if JAX will run on CPU, unless the user has set XLA_FLAGS or jaxlib is not one of VERSIONS."""
    if runs_on_cpu() and "XLA_FLAGS" not in os.environ and _jaxlib() in VERSIONS:
        os.environ["XLA_FLAGS"] = CPU_FLAG


def keep_memory() -> None:
    """Makes glibc keep freed memory, if JAX will run on CPU; a no-op with another C library.

    XLA allocates the temporary memory of each step anew. By default glibc takes that much from the system and gives it
    back at once, so every page of it was cleared at every step: 150 of the quickstart step's 650 ms (56,000 page
    faults of 230 MB). Must come before threads: only the main arena can grow so far, so it must be the only one.
    """
    if not runs_on_cpu() or platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    for option, value in _KEEP:
        mallopt(option, value)


def keep_compiled() -> None:
    """Keeps compiled functions in the user's cache folder, so that the next process need not compile them again.

    The folder is kaleido_jax/xla in XDG_CACHE_HOME (~/.cache), below it one for each kind of processor, since code
    compiled on one may not run on another. JAX_COMPILATION_CACHE_DIR comes first; empty, it turns the cache off.
    JAX alone keeps functions of more than a second; a small model has several below it.
    """
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "kaleido_jax" / "xla"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / _processor()))


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.machine()}-{zlib.crc32(features.encode()):08x}"


def runs_on_cpu() -> bool:
    """Whether JAX will choose the CPU: asked to, or no accelerator is there."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    accelerator = any(Path(p).exists() for p in ("/dev/nvidia0", "/dev/accel0", "/dev/vfio/0"))
    return platforms == "cpu" or (not platforms and not accelerator)


def add_virtual_devices(count: int) -> None:
    """Makes JAX start with `count` CPU devices, which are threads; must come before JAX starts.

    An accelerator of this machine is not used then. A number of devices in the user's XLA_FLAGS stays.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"
    flags = os.environ.get("XLA_FLAGS", "")
    if "--xla_force_host_platform_device_count" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={count}".strip()


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
