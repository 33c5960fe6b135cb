"""Accelerators as their makers describe them: peak and memory."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Device:
    """One accelerator, as its maker describes it."""

    tflops: float  # 1e12 FLOP/s, dense bfloat16 products
    memory_gb: float  # 1e9 bytes
    source: str


DEVICES = {
    "a100": Device(tflops=312, memory_gb=80, source="NVIDIA A100 80GB datasheet (SXM)"),
    "a100-40": Device(tflops=312, memory_gb=40, source="NVIDIA A100 40GB datasheet (SXM)"),
    "h100": Device(tflops=989, memory_gb=80, source="NVIDIA H100 datasheet (SXM, without sparsity)"),
    "h100-pcie": Device(tflops=756, memory_gb=80, source="NVIDIA H100 datasheet (PCIe, without sparsity)"),
    "h100-nvl": Device(tflops=835, memory_gb=94, source="NVIDIA H100 datasheet (NVL, without sparsity)"),
    "h200": Device(tflops=989, memory_gb=141, source="NVIDIA H200 datasheet (SXM, without sparsity)"),
    "h200-nvl": Device(tflops=835, memory_gb=141, source="NVIDIA H200 datasheet (NVL, without sparsity)"),
    "v4": Device(tflops=275, memory_gb=32, source="Cloud TPU documentation, v4, per chip"),
    "v5e": Device(tflops=197, memory_gb=16, source="Cloud TPU documentation, v5e, per chip"),
    "v5p": Device(tflops=459, memory_gb=95, source="Cloud TPU documentation, v5p, per chip"),
    "v6e": Device(tflops=918, memory_gb=32, source="Cloud TPU documentation, v6e, per chip"),
}

# What JAX calls them -> the key above, first match; others have no known peak.
_KINDS = (
    ("A100-SXM4-40GB", "a100-40"),
    ("A100-PCIE-40GB", "a100-40"),
    ("A100", "a100"),
    ("H100 PCIe", "h100-pcie"),
    ("H100 NVL", "h100-nvl"),
    ("H100", "h100"),
    ("H200 NVL", "h200-nvl"),
    ("H200", "h200"),
    ("TPU v4", "v4"),
    ("TPU v5 lite", "v5e"),
    ("TPU v5e", "v5e"),
    ("TPU v5", "v5p"),
    ("TPU v6", "v6e"),
)


def accelerator(device_kind: str) -> Device | None:
    """The accelerator that JAX's `device_kind` names; None if it is not one of DEVICES, or a part of one (MIG)."""
    if "MIG" in device_kind.split():
        return None
    return next((DEVICES[key] for text, key in _KINDS if text in device_kind), None)
