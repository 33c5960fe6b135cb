"""The step compiled for devices that need not be there: a TPU topology, GPUs or virtual CPU devices."""

import dataclasses
import importlib.metadata
import importlib.util
import os

import jax
import numpy as np
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from kaleido_jax.config.schema import Config
from kaleido_jax.errors import user_error
from kaleido_jax.plan.gpus import GPUS, gpu_devices, options_for
from kaleido_jax.plan.hlo import Communication, communication
from kaleido_jax.plan.program import build_program, lower
from kaleido_jax.plan.stage import stage

TOPOLOGIES = "v4:2x2x1, v5e:4x4, v5p:2x2x2 or v6e:4x4"  # what an error shows as examples
_WITHOUT_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",  # there is no TPU VM to ask,
    "TPU_WORKER_HOSTNAMES": "localhost",  # so these need not be looked for; the topology comes from its name
    "TPU_ACCELERATOR_TYPE": "v5p-16",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nor is there a TPU that only one process may hold
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """What the compiler says of a step on one device."""

    argument_bytes: int  # state, frozen parameters and batch
    temporary_bytes: int  # gradients and what the backward pass needs
    peak_bytes: int  # arguments, temporaries, and results that do not take an argument's place
    communication: Communication


def topology_devices(name: str) -> np.ndarray:
    """The devices of a TPU topology such as "v5p:2x2x2", as libtpu describes them without any TPU, or `gpu_devices`.

    Raises:
      UserError: libtpu is not installed or of another version than this jax reads, or knows no such topology; or as
        `gpu_devices`.
    """
    kind = name.partition(":")[0]
    if kind in GPUS:
        return gpu_devices(name)
    if not kind.removeprefix("tpu").removeprefix("v")[:1].isdigit():  # no generation of TPUs, whatever libtpu knows
        gpus = ", ".join(f"{gpu}:8" for gpu in GPUS)
        raise user_error(f"--topology={name}", f"GPUs such as {gpus}, or TPUs such as {TOPOLOGIES}", "correct it")
    _check_libtpu(name)
    for variable, value in _WITHOUT_TPU.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    try:
        return np.asarray(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise user_error(
            f"--topology={name} ({reason})", f"one that libtpu knows, e.g. {TOPOLOGIES}", "correct it"
        ) from error


def _check_libtpu(topology: str) -> None:
    """Before an hour of compiling: the programs of a newer libtpu are ones that jaxlib cannot read."""
    requirements = map(Requirement, importlib.metadata.requires("jax") or ())
    wanted = next((r.specifier for r in requirements if r.name == "libtpu"), SpecifierSet())
    install = f"pip install 'libtpu{wanted}'"
    if importlib.util.find_spec("libtpu") is None:
        raise user_error(f"--topology={topology} without libtpu", "the TPU compiler", install)
    found = importlib.metadata.version("libtpu")
    if found not in wanted:
        raise user_error(f"libtpu {found}", f"libtpu{wanted}, which jax {jax.__version__} reads", install)


def virtual_devices(count: int) -> np.ndarray:
    """The CPU devices of this process, of which it must have as many.

    Raises:
      UserError: it has another number.
    """
    there = np.asarray(jax.devices("cpu"))
    if there.size != count:
        do = f"unset XLA_FLAGS or put --xla_force_host_platform_device_count={count} there"
        raise user_error(f"{there.size} virtual CPU devices", f"--devices={count}", do)
    return there


def compile_step(config: Config, base_vocab_size: int, devices: np.ndarray) -> Compiled:
    """Lowers and compiles the step for these devices; minutes and many GB of memory for the paper's model.

    Raises:
      UserError: as build_program, or the step does not fit the devices' memory.
    """
    program = build_program(config, base_vocab_size, devices.size, devices)
    with stage("lowering the step"):
        lowered = lower(program)
    with stage(f"compiling the step for {devices.size} x {devices.flat[0].device_kind}"):
        try:
            compiled = lowered.compile(compiler_options=options_for(devices.flat[0]))
        except jax.errors.JaxRuntimeError as error:
            reason = str(error).splitlines()[0]
            if "RESOURCE_EXHAUSTED" not in reason:
                raise
            do = "use more devices, a smaller train.batch_size or remat = 'full'"
            raise user_error(reason, "a step that fits the devices' memory", do) from error
    with stage("reading the compiled program"):
        exchanged = communication(compiled.as_text())
    memory = compiled.memory_analysis()
    arguments, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    return Compiled(
        argument_bytes=arguments,
        temporary_bytes=temporary,
        peak_bytes=arguments + temporary + memory.output_size_in_bytes - memory.alias_size_in_bytes,
        communication=exchanged,
    )
