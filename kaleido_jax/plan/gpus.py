"""GPUs that need not be there: NVIDIA's compiler is told what they are like.

XLA compiles for a GPU by its description (`xla/backends/gpu/target_config` of openxla/xla), of which the figures below
are those that matter to it. What it would try out on the device it cannot choose: products are cuBLAS's.
"""

import dataclasses
import importlib.util

import jax
import numpy as np

from kaleido_jax.errors import user_error

PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gpu:
    """What the compiler asks of a GPU."""

    name: str  # as JAX's device_kind
    capability: int  # major compute capability
    multiprocessors: int
    float32_units: int  # of a multiprocessor
    shared_bytes: int  # of a multiprocessor
    block_shared_bytes: int  # the most that a block may ask for
    l2_bytes: int
    memory_bytes: int
    memory_gb_per_sec: float  # 1e9 bytes
    clock_ghz: float

    def description(self) -> str:
        """As a GpuTargetConfigProto in protobuf's text format."""
        of_all = {
            "threads_per_block_limit": 1024,
            "threads_per_warp": 32,
            "threads_per_core_limit": 2048,
            "thread_dim_limit_x": 1024,
            "thread_dim_limit_y": 1024,
            "thread_dim_limit_z": 64,
            "block_dim_limit_x": 2**31 - 1,
            "block_dim_limit_y": 2**16 - 1,
            "block_dim_limit_z": 2**16 - 1,
            "registers_per_core_limit": 2**16,
            "registers_per_block_limit": 2**16,
            "shared_memory_per_block": 49152,
        }
        own = {
            "core_count": self.multiprocessors,
            "fpus_per_core": self.float32_units,
            "shared_memory_per_core": self.shared_bytes,
            "shared_memory_per_block_optin": self.block_shared_bytes,
            "l2_cache_size": self.l2_bytes,
            "device_memory_size": self.memory_bytes,
            "memory_bandwidth": round(self.memory_gb_per_sec * 1e9),
            "clock_rate_ghz": self.clock_ghz,
        }
        fields = " ".join(f"{name}: {value}" for name, value in (of_all | own).items())
        return (
            f"gpu_device_info {{ {fields} cuda_compute_capability {{ major: {self.capability} }} }}\n"
            'platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 } runtime_version { major: 12 minor: 9 }\n'
            f'device_description_str: "{self.name}"\n'
        )


_HOPPER = {
    "capability": 9,
    "multiprocessors": 132,
    "float32_units": 128,
    "shared_bytes": 233_472,
    "block_shared_bytes": 232_448,
    "l2_bytes": 52_428_800,
    "clock_ghz": 1.98,
}
_AMPERE = {
    "capability": 8,
    "multiprocessors": 108,
    "float32_units": 64,
    "shared_bytes": 167_936,
    "block_shared_bytes": 166_912,
    "l2_bytes": 41_943_040,
    "clock_ghz": 1.41,
}
GPUS = {  # by the keys of accelerators.DEVICES
    "a100": Gpu(name="NVIDIA A100-SXM4-80GB", memory_bytes=85_100_068_864, memory_gb_per_sec=2039.04, **_AMPERE),
    "a100-40": Gpu(name="NVIDIA A100-SXM4-40GB", memory_bytes=42_331_013_120, memory_gb_per_sec=1555.2, **_AMPERE),
    "h100": Gpu(name="NVIDIA H100 80GB HBM3", memory_bytes=84_942_979_072, memory_gb_per_sec=3352.32, **_HOPPER),
    "h200": Gpu(name="NVIDIA H200", memory_bytes=151_397_597_184, memory_gb_per_sec=4800.0, **_HOPPER),
}


def gpu_devices(topology: str) -> np.ndarray:
    """The devices of "h100:8", eight GPUs of one machine, or "h100:4x8", of four.

    Raises:
      UserError: another form, or JAX's CUDA plugin is not installed or does not load.
    """
    kind, _, shape = topology.partition(":")
    sizes = shape.split("x")
    if not (len(sizes) in (1, 2) and all(size.isdecimal() and int(size) for size in sizes)):
        raise user_error(f"--topology={topology}", f"{kind}:GPUS or {kind}:MACHINESxGPUS, e.g. {kind}:8", "correct it")
    if not any(map(importlib.util.find_spec, PLUGINS)):
        install = f"pip install 'jax[cuda12]=={jax.__version__}'; no GPU and no driver is needed"
        raise user_error(f"--topology={topology} without JAX's CUDA plugin", "NVIDIA's compiler", install)
    from jax.experimental import topologies

    name = "x".join(["1", *(["1"] if len(sizes) == 1 else []), *sizes])  # slices x machines x GPUs
    described = {"topology": name, "target_config": GPUS[kind].description()}
    try:
        return np.asarray(topologies.get_topology_desc(platform="cuda", topology_name=name, **described).devices)
    except (
        NotImplementedError,
        RuntimeError,
    ) as error:  # what jax says of a plugin that it could not load is in the log
        reason = str(error).splitlines()[0]
        do = "set JAX_PLATFORMS=cpu, or install the plugin of this jax's version"
        raise user_error(f"--topology={topology} ({reason})", "JAX's CUDA plugin to load", do) from error


def options_for(device: jax.Device) -> dict[str, int | bool] | None:
    """The compiler's options for a device that is not there: Triton's products would be timed on it."""
    return {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False} if device.platform == "gpu" else None
