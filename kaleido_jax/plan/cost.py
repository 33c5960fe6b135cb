"""Time and cost of a run from its arithmetic, at a utilization and a price that the user gives."""

import dataclasses

from kaleido_jax.config.schema import Config
from kaleido_jax.models.flops import StepFlops
from kaleido_jax.runtime.accelerators import Device


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A whole training run."""

    num_steps: int
    batch_size: int
    images_per_sec: float
    model_utilization: float  # of the peak, by the FLOPs without recomputation (MFU)
    days: float
    device_hours: float
    usd: float


def run_cost(
    config: Config, step: StepFlops, device: Device, num_devices: int, utilization: float, usd_per_device_hour: float
) -> Run:
    """config.train.num_steps steps.

    Args:
      config: gives the steps and the batch.
      step: FLOPs of a step, of the whole batch.
      device: one of DEVICES.
      num_devices: that share the step.
      utilization: share of the devices' peak that all FLOPs of the step reach, recomputed ones too, 0..1.
      usd_per_device_hour: the price.
    """
    sec_per_step = step.total / (num_devices * device.tflops * 1e12 * utilization)
    hours = config.train.num_steps * sec_per_step / 3600
    return Run(
        num_steps=config.train.num_steps,
        batch_size=config.train.batch_size,
        images_per_sec=config.train.batch_size / sec_per_step,
        model_utilization=utilization * step.model / step.total,
        days=hours / 24,
        device_hours=hours * num_devices,
        usd=hours * num_devices * usd_per_device_hour,
    )
