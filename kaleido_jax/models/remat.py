"""Rematerialization: what a layer keeps for its backward pass, by the config's policy."""

from collections.abc import Sequence

import flax.linen as nn
import jax

POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,  # the inputs of a layer only
    # Products with weights. Convolutions are no dots and attention's products have batch axes, so both are recomputed.
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    # The same products, in the host's memory until the backward pass: for machines whose host is fast to reach.
    "offload": jax.checkpoint_policies.offload_dot_with_no_batch_dims("device", "pinned_host"),
}


def rematerialize(
    layer: type[nn.Module], policy: str, *, scanned: bool = False, methods: Sequence[str] = ("__call__",)
) -> type[nn.Module]:
    """The layer's class, recomputing in the backward pass what `policy` does not keep; "none" keeps everything.

    Args:
      layer: the class.
      policy: config.model.t5.remat, or that of a UNet: "none", "dots", "offload" or "full".
      scanned: the layer runs in a scan, where XLA cannot merge the second computation with the first. Otherwise
        barriers prevent that, which costs some fusions.
      methods: of the layer that training runs.
    """
    if policy == "none":
        return layer
    return nn.remat(layer, policy=POLICIES[policy], prevent_cse=not scanned, methods=list(methods))
