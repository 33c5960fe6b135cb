"""What every test stands on: one CPU device, a compilation cache, strict shapes; set before jax comes in."""

import logging
import os
import subprocess
import sys
from pathlib import Path

from kaleido_jax.runtime.xla_flags import set_cpu_flag

REPO = Path(__file__).parent.parent
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# As variables, so that the processes which tests start share the cache.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(REPO / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# The workers share the cores: BLAS threads that wait for each other spin there, and made 0.1 s of eigh 12 s.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
set_cpu_flag()
# Compiling is most of the suite's time and its arrays are tiny: less optimization halves it, and without the fusion
# emitters' MLIR passes it falls by a third. After the flag above, so that a user's own XLA_FLAGS still come first.
QUICK = ("backend_optimization_level=0", "llvm_disable_expensive_passes=true", "cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *(f"--xla_{flag}" for flag in QUICK)])

import hypothesis  # noqa: E402
import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402
from absl import flags  # noqa: E402

import tests.checker  # noqa: E402, F401  (the hook below names it)

jax.config.update("jax_numpy_rank_promotion", "raise")
# Rooms and modules whose types are checked at run time. The others run small functions thousands of times, where the
# checks would double the suite's time; KALEIDO_CHECK_ALL=1 checks them too. config/ has its own checks and no arrays.
CHECKED = (
    *("runtime", "models", "diffusion", "data", "interop", "sampling", "train", "evaluate", "latents.geometry"),
    *("intake", "annotate.vlm.model", "annotate.vision", "annotate.vokens", "annotate.torch_models"),
)
if os.environ.get("KALEIDO_CHECK_ALL") == "1":
    CHECKED += ("latents", "annotate", "verbs")
jaxtyping.install_import_hook([f"kaleido_jax.{name}" for name in CHECKED], "tests.checker.check")
flags.FLAGS.mark_as_parsed()  # grain reads flags where no main has parsed them
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)  # a first call compiles
hypothesis.settings.load_profile("repeatable")


# From the longest on. Handed out last, one of these would leave the other workers without work; pytest-xdist gets them
# in this order by --no-loadscope-reorder.
LONG = (
    *("test_readme.py", "train/test_devices.py", "train/test_processes.py", "train/test_resume.py"),
    *("test_face.py", "test_own_pictures.py", "train/test_soak.py"),
    *("test_verbs.py", "models/test_mdm_golden.py", "sampling/test_call.py", "interop/t5/test_t5_checkpoints.py"),
    *("latents/test_automaton.py", "models/test_t5_golden.py", "diffusion/test_samplers.py", "train/test_step.py"),
    *("test_main.py", "sampling/test_pipeline.py", "train/test_warm_start.py", "interop/mdm/test_mdm_files.py"),
    *("diffusion/test_guidance.py", "annotate/vlm/test_readers.py"),
)


def pytest_collection_modifyitems(items):
    """The longest files first, then others with slow tests."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    place = {REPO / "tests" / name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path, len(LONG) + (item.path not in slow)))


@pytest.fixture(autouse=True)
def no_log_of_another_test():
    """What start_logging leaves behind: a handler whose stderr is closed with its test, and the levels."""
    loggers = logging.getLogger(), logging.getLogger("kaleido_jax")
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
    for handler in loggers[0].handlers[:]:
        if type(handler) is logging.StreamHandler:  # pytest's own are of classes made from it
            loggers[0].removeHandler(handler)


@pytest.fixture
def unchecked_types():
    """Arguments of other types get as far as they do for users, who run without the checks of types."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def eight_devices():
    """A function that runs Python source in a new process with 8 virtual devices and returns its stdout."""

    def run(source: str, timeout: float = 900) -> str:
        xla_flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
        done = subprocess.run(
            [sys.executable, "-c", source],
            cwd=REPO,
            env=os.environ | {"XLA_FLAGS": xla_flags, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run
