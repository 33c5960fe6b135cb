"""FLOPs of a training step from the config alone: each network's matrix products and convolutions, written out.

A product of (m, k) and (k, n) is 2 m k n FLOPs. Its backward pass is two such products, one if only one factor needs a
gradient. Rematerialization computes the products that its policy does not keep once more, except for those whose
result only enters the sum at the end of a block, which no gradient reads. Elementwise work is left out.
plan/flops.py counts the same from the traced step, and a test holds the two together.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Literal

from kaleido_jax.config.schema import T5, Config, PointNet, UNet, nested

Kind = Literal["dense", "attention", "conv"]
RECOMPUTED = {  # policy of models/remat.py -> kinds of products that the backward pass computes again
    "none": (),
    "dots": ("attention", "conv"),
    "offload": ("attention", "conv"),
    "full": ("attention", "conv", "dense"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepFlops:
    """FLOPs of a training step or of a part of it, over all devices."""

    forward: int
    backward: int
    recomputed: int  # by rematerialization

    @property
    def model(self) -> int:
        """What any implementation must compute; the model's utilization (MFU) counts these."""
        return self.forward + self.backward

    @property
    def total(self) -> int:
        """What this step computes."""
        return self.model + self.recomputed

    def __add__(self, other: "StepFlops") -> "StepFlops":
        """The sum of two parts."""
        return StepFlops(
            forward=self.forward + other.forward,
            backward=self.backward + other.backward,
            recomputed=self.recomputed + other.recomputed,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Product:
    """A product of one row of the batch."""

    flops: int
    kind: Kind = "dense"
    gradients: int = 2  # factors that need one
    policy: str = "none"  # of the block that is rematerialized with it
    read: bool = True  # the backward pass reads its result

    def of(self, rows: int) -> StepFlops:
        again = self.gradients > 0 and self.read and self.kind in RECOMPUTED[self.policy]
        forward = rows * self.flops
        return StepFlops(forward=forward, backward=self.gradients * forward, recomputed=again * forward)


Products = Iterator[_Product]


def step_flops(config: Config, base_vocab_size: int) -> dict[str, StepFlops]:
    """Part -> FLOPs of a step of config.train.batch_size samples: encoder, prior (if there is one) and denoiser.

    Captions have config.data.max_caption_tokens tokens, latents config.latents.max_latents_tokens. An encoder whose
    class captions were encoded before training costs nothing.

    Args:
      config: the experiment; without latents it is the baseline.
      base_vocab_size: rows of T5's vocabulary.
    """
    t5, rows, has_prior = config.model.t5, config.train.batch_size, bool(config.latents.segments)
    caption, latents = config.data.max_caption_tokens, config.latents.max_latents_tokens
    trained = t5.encoder.trainable
    parts = {"encoder": StepFlops(forward=0, backward=0, recomputed=0)}
    if not config.data.class_captions:
        parts["encoder"] = _total(_encoder(t5, caption), rows + 1)  # and the empty caption
    if has_prior:
        layers = list(_decoder(t5, caption, latents))
        head = 2 * latents * t5.d_model * (base_vocab_size + config.latents.codebook_size)
        passes = [_Product(flops=head), *layers]
        if config.train.scheduled_sampling:  # the logits of the first pass only choose tokens
            passes += [_Product(flops=head, gradients=0), *layers]
        parts["prior"] = _total(iter(passes), rows)
    length, text_has_gradient = caption + latents * has_prior, has_prior or trained
    if config.model.denoiser is None:
        points = _point_net(config.model.point_denoiser, t5.d_model, text_has_gradient)
        return parts | {"denoiser": _total(points, rows)}
    nets = nested(config.model.denoiser)
    ratio = config.train.mixed_ratio or (1,) + (0,) * (len(nets) - 1)
    total = _total(_text_path(nets, length, t5.d_model, text_has_gradient), rows)
    for depth, net in enumerate(nets):
        own_rows = rows * sum(ratio[: depth + 1]) // sum(ratio)  # as diffusion.loss.mixed_rows
        total += _total(_unet(net, length), own_rows)
        if net.inner is not None:
            side = net.inner.image_size // net.inner.patch
            between = 2 * 9 * side**2 * net.channels[-1] * net.inner.channels[0]
            total += _total(iter([_Product(flops=between, kind="conv")] * 2), own_rows)  # the two adapters
    return parts | {"denoiser": total}


def flops_at(config: Config, base_vocab_size: int, caption: int, latents: int) -> StepFlops:
    """The whole step on captions and latents padded to these lengths."""
    at = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, max_caption_tokens=caption),
        latents=dataclasses.replace(config.latents, max_latents_tokens=latents),
    )
    return sum_parts(step_flops(at, base_vocab_size))


def sum_parts(parts: Mapping[str, StepFlops]) -> StepFlops:
    """The whole step."""
    return sum(parts.values(), StepFlops(forward=0, backward=0, recomputed=0))


def _total(products: Products, rows: int) -> StepFlops:
    return sum((product.of(rows) for product in products), StepFlops(forward=0, backward=0, recomputed=0))


# ------------------------------------------------------------------------------------------------ T5
def _encoder(t5: T5, length: int) -> Products:
    gradients = 2 if t5.encoder.trainable else 0
    layer = [*_attention(t5, length, length), *_mlp(t5, length)]
    for product in layer * t5.num_encoder_layers:
        yield dataclasses.replace(product, gradients=gradients)


def _decoder(t5: T5, caption: int, latents: int) -> Products:
    of_caption = 2 if t5.encoder.trainable else 1  # a frozen H_c needs no gradient
    own, cross = _attention(t5, latents, latents), _attention(t5, latents, caption, of_caption)
    yield from [*own, *cross, *_mlp(t5, latents)] * t5.num_decoder_layers


def _attention(t5: T5, queries: int, keys: int, key_gradients: int = 2) -> Products:
    inner = t5.num_heads * t5.head_dim
    for _ in ("query", "out"):
        yield _Product(flops=2 * queries * t5.d_model * inner, policy=t5.remat)
    for _ in ("key", "value"):
        yield _Product(flops=2 * keys * t5.d_model * inner, gradients=key_gradients, policy=t5.remat)
    for _ in ("logits", "values"):  # masked pairs are computed too
        yield _Product(flops=2 * queries * keys * inner, kind="attention", policy=t5.remat)


def _mlp(t5: T5, length: int) -> Products:
    each = 2 * length * t5.d_model * t5.d_ff
    for name in ("wi_0", "wi_1", "wo"):
        yield _Product(flops=each, policy=t5.remat, read=name != "wo")


# ------------------------------------------------------------------------------------------------ denoiser
def _text_path(nets: tuple[UNet, ...], length: int, d_model: int, text_has_gradient: bool) -> Products:
    """The innermost net's text path, and the keys and values of the text for every attention block of the nest."""
    inner = nets[-1]
    width, first = inner.text_proj_channels or d_model, 2 if text_has_gradient else 1
    if inner.text_proj_channels:
        yield _Product(flops=2 * length * d_model * width, gradients=first)
    for _ in range(inner.num_text_layers):
        yield _Product(flops=2 * length * width * (3 + 1 + 4 + 4) * width)
        yield _Product(flops=2 * 2 * length * length * width, kind="attention")
    learned = inner.text_proj_channels or inner.num_text_layers
    yield _Product(flops=2 * width * inner.emb_channels, gradients=2 if learned else first)
    for net in nets:
        for kind, channels, *_ in _blocks(net):
            if kind == "attention":
                yield _Product(flops=2 * length * width * 2 * channels)


def _unet(net: UNet, length: int) -> Products:
    """Everything that a net computes from images and times; `length` is that of [H_c ; H_z]."""
    for _ in range(1 + len(net.micro)):  # times and micro conditions, which need no gradient
        yield _Product(flops=2 * net.emb_channels // 4 * net.emb_channels, gradients=1)
        yield _Product(flops=2 * net.emb_channels**2)
    pixels = (net.image_size // net.patch) ** 2
    ends = 2 * 9 * pixels * 3 * net.patch**2 * net.channels[0]
    yield _Product(flops=ends, kind="conv", gradients=1)
    yield _Product(flops=ends, kind="conv")
    for kind, channels, side, before in _blocks(net):
        if kind == "resample":
            yield _Product(flops=2 * 9 * side**2 * channels**2, kind="conv")
        elif kind == "resnet":
            yield from _resnet(net, before, channels, side**2)
        else:
            yield from _attention_block(net, channels, side**2, length)


def _blocks(net: UNet) -> Iterator[tuple[Literal["resnet", "attention", "resample"], int, int, int]]:
    """(kind, channels, side in positions of its output, channels before) of each block, as UNet.setup builds them."""
    side, last = net.image_size // net.patch, len(net.channels) - 1
    skips, width = [net.channels[0]], net.channels[0]
    for i, (channels, blocks, attention) in enumerate(
        zip(net.channels, net.num_res_blocks, net.num_attn_layers, strict=True)
    ):
        for _ in range(blocks):
            yield "resnet", channels, side, width
            yield from [("attention", channels, side, channels)] * attention
            width = channels
            skips.append(width)
        if i < last:
            side //= 2
            yield "resample", channels, side, channels
            skips.append(width)
    if net.inner is None and net.mid_blocks:
        yield "resnet", width, side, width
        yield "attention", width, side, width
        yield "resnet", width, side, width
    for i in reversed(range(last + 1)):
        channels = net.channels[i]
        for _ in range(net.num_res_blocks[i] + 1):
            yield "resnet", channels, side, width + skips.pop()
            yield from [("attention", channels, side, channels)] * net.num_attn_layers[i]
            width = channels
        if i:
            side *= 2
            yield "resample", channels, side, channels


def _resnet(net: UNet, before: int, channels: int, pixels: int) -> Products:
    yield _Product(flops=2 * 9 * pixels * before * channels, kind="conv", policy=net.remat)
    yield _Product(flops=2 * net.emb_channels * 2 * channels, policy=net.remat)  # scale and shift of the time
    yield _Product(flops=2 * 9 * pixels * channels**2, kind="conv", policy=net.remat, read=False)
    if before != channels:
        yield _Product(flops=2 * pixels * before * channels, kind="conv", policy=net.remat, read=False)


def _attention_block(net: UNet, channels: int, pixels: int, length: int) -> Products:
    yield _Product(flops=2 * pixels * channels * 3 * channels, policy=net.remat)
    yield _Product(flops=2 * 2 * pixels * (pixels + length) * channels, kind="attention", policy=net.remat)
    yield _Product(flops=2 * pixels * channels**2, policy=net.remat, read=net.attention_ffn)
    if net.attention_ffn:
        yield _Product(flops=2 * pixels * channels * 4 * channels, policy=net.remat)
        yield _Product(flops=2 * pixels * channels * 4 * channels, policy=net.remat, read=False)


def _point_net(net: PointNet, d_model: int, text_has_gradient: bool) -> Products:
    yield _Product(flops=2 * d_model * net.emb_channels, gradients=2 if text_has_gradient else 1)
    yield _Product(flops=2 * net.emb_channels // 4 * net.emb_channels + 2 * net.dim * net.width, gradients=1)
    each = net.width + net.emb_channels
    yield _Product(flops=2 * net.emb_channels**2 + 2 * net.num_layers * each * net.width + 2 * net.width * net.dim)
