"""Rematerialization: what a layer keeps for its backward pass, by the policy that the config names."""

from collections.abc import Sequence

import flax.linen as nn
import jax

POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,  # the inputs of a layer only
    # Products with weights. Convolutions and attention's products are recomputed: they have batch axes, or are no dots.
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def rematerialize(
    layer: type[nn.Module], policy: str, *, scanned: bool = False, methods: Sequence[str] = ("__call__",)
) -> type[nn.Module]:
    """The layer's class with what `policy` does not keep recomputed in the backward pass; "none" keeps everything.

    Args:
      layer: the class.
      policy: config.model.t5.remat, or that of a UNet: "none", "dots" or "full".
      scanned: the layer runs in a scan, where XLA cannot merge the second computation with the first. Otherwise
        barriers keep it from that, which cost some fusions.
      methods: of the layer that training runs.
    """
    if policy == "none":
        return layer
    return nn.remat(layer, policy=POLICIES[policy], prevent_cse=not scanned, methods=list(methods))
