"""The two programs that benchmarks/denoiser.py compares: our denoiser, and ml-mdm's in PyTorch.

Both make the same weights and inputs from seeds, so nothing of size goes between processes. Each side
has `prepare(op)`, a function that runs the op once and returns another that gives numbers to compare.
"""

import dataclasses
import math
import sys

import numpy as np

from kaleido_jax.config import load_config
from kaleido_jax.config import schema as cfg

TIME, NEXT_TIME = 500, 480  # one reverse step of 50
GUIDANCE = 4.0  # gamma
LEARNING_RATE, BETAS, EPS = 1e-4, (0.9, 0.99), 1e-8
COMPARED_STEPS = 2  # losses of the first training steps


# ------------------------------------------------------------------------------- what both sides read
@dataclasses.dataclass(frozen=True)
class Case:
    """One net with the sizes of its inputs."""

    name: str
    net: cfg.UNet
    text_channels: int
    text_tokens: int
    batch: int
    diffusion: cfg.Diffusion


def make_case(name: str, batch: int = 0) -> Case:
    """The case of that name; its nets without remat, which ml-mdm does not have. `batch` 0 is the case's own."""
    file, own_batch, inner = {
        "tiny": ("emoji_combined", 16, False),
        "inner": ("imagenet_combined", 2, True),
        "full": ("imagenet_combined", 1, False),
    }[name]
    config = load_config(file)
    net = config.model.denoiser.inner if inner else config.model.denoiser
    return Case(
        name,
        _without_remat(net),
        config.model.t5.d_model,
        config.data.max_caption_tokens + config.latents.max_latents_tokens,
        batch or own_batch,
        config.diffusion,
    )


def _without_remat(net):
    return dataclasses.replace(net, remat="none", inner=None if net.inner is None else _without_remat(net.inner))


def inputs(case: Case) -> dict:
    """NHWC images and targets from high to low resolution, times (B,), text (B, L, D) and its mask (B, L)."""
    rng, b, tokens = np.random.default_rng(1), case.batch, case.text_tokens
    normal = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
    shapes = [(b, net.image_size, net.image_size, 3) for net in cfg.nested(case.net)]
    lengths = rng.integers(tokens // 2, tokens + 1, b)
    return {
        "images": [normal(*shape) for shape in shapes],
        "targets": [normal(*shape) for shape in shapes],
        "times": rng.integers(0, 1000, b).astype(np.int32),
        "text": normal(b, tokens, case.text_channels),
        "null": normal(b, tokens, case.text_channels),
        "mask": np.arange(tokens) < lengths[:, None],
    }


def weights(case: Case) -> dict:
    """Every tensor under ml-mdm's name, float32: matrices N(0, 1/fan_in), norm scales 1 + 0.1 N, the rest 0.1 N.

    No layer is zero, so all of them count in the comparison.
    """
    from kaleido_jax.interop.mdm import layout as mdm

    state = {}
    named = mdm.named(mdm.denoiser_shapes(case.net, case.text_channels))
    for i, (name, (path, shape)) in enumerate(sorted(named.items())):
        shape = mdm.torch_shape(path, shape)
        draw = np.random.default_rng((2, i)).standard_normal(shape, np.float32)
        scale = 0.1 if len(shape) == 1 else 1 / math.sqrt(math.prod(shape[1:]))
        state[name] = draw * np.float32(scale) + np.float32(path[-1] == "scale")
    return state


# ------------------------------------------------------------------------------------------------ ours
class Ours:
    """kaleido_jax, jitted; parameters float32, `dtype` is that of the computation."""

    def __init__(self, case: Case, dtype: str):
        import jax
        import jax.numpy as jnp

        from kaleido_jax.interop.mdm import layout as mdm
        from kaleido_jax.models.nested_unet import build_denoiser

        self.case, self.jax = case, jax
        self.net = build_denoiser(case.net, case.text_channels, jnp.dtype(dtype))
        self.params = jax.device_put(mdm.denoiser_from_mdm(weights(case), case.net, case.text_channels))
        self.given = jax.device_put(inputs(case))

    def _predict(self, params, given):
        run = lambda net: net(given["images"], given["times"], net.condition(given["text"], given["mask"]))  # noqa: E731
        return self.net.apply({"params": params}, method=run)

    def _condition(self, params, text, mask):
        return self.net.apply({"params": params}, text, mask, method="condition")

    def _reverse_step(self, params, images, condition, unconditional):
        import jax.numpy as jnp

        from kaleido_jax.diffusion.guidance import CFG, Denoiser
        from kaleido_jax.diffusion.samplers import DDIM, Levels, reverse_step
        from kaleido_jax.diffusion.schedule import alpha_bar_table

        model = Denoiser(
            denoise=lambda *args: self.net.apply({"params": params}, *args),
            cond=condition,
            uncond=unconditional,
            read=lambda *states: condition,
            states=(),
        )
        times, keys = (
            jnp.full(self.case.batch, TIME - 1),
            self.jax.random.split(self.jax.random.key(0), self.case.batch),
        )
        predictions, _ = CFG(gamma=GUIDANCE)(model, images, times, keys, ())
        table = jnp.asarray(alpha_bar_table(self.case.diffusion.schedule, self.case.diffusion.num_steps))
        levels = Levels(at=table[TIME], t=table[TIME], s=table[NEXT_TIME])
        scales = cfg.scales(cfg.Model(denoiser=self.case.net))
        carried = [()] * len(images)
        diffusion, sample = self.case.diffusion, cfg.Sample()
        return reverse_step(DDIM(), images, carried, predictions, images, levels, diffusion, sample, scales)[0]

    def _sampling_inputs(self):
        given, condition = self.given, self.jax.jit(self._condition)
        conditions = [condition(self.params, given[key], given["mask"]) for key in ("text", "null")]
        return self.params, given["images"], *conditions

    def device(self) -> tuple[str, str, int]:
        """(platform, kind, number) of the devices."""
        devices = self.jax.devices()
        return devices[0].platform, devices[0].device_kind, len(devices)

    def flops(self) -> dict:
        """Floating-point operations of each op, as XLA counts our lowered program; training is three forwards."""
        forward = self.jax.jit(self._predict).lower(self.params, self.given).cost_analysis()["flops"]
        sample = self.jax.jit(self._reverse_step).lower(*self._sampling_inputs()).cost_analysis()["flops"]
        return {"forward": forward, "train": 3 * forward, "sample": sample}

    def prepare(self, op: str):
        """A function that runs the op once; the first call compiles."""
        if op == "train":
            return self._prepare_train()
        function, arguments = {
            "forward": lambda: (self.jax.jit(self._predict), (self.params, self.given)),
            "sample": lambda: (self.jax.jit(self._reverse_step), self._sampling_inputs()),
        }[op]()

        def run():
            out = self.jax.block_until_ready(function(*arguments))
            return lambda: [np.asarray(x, np.float32) for x in out]

        return run

    def _prepare_train(self):
        import jax.numpy as jnp
        import optax

        optimizer = optax.adam(LEARNING_RATE, *BETAS, eps=EPS)

        def loss_of(params, given):
            pairs = zip(self._predict(params, given), given["targets"], strict=True)
            return sum(jnp.mean((prediction - target) ** 2) for prediction, target in pairs)

        def step(params, opt_state, given):
            loss, grads = self.jax.value_and_grad(loss_of)(params, given)
            updates, opt_state = optimizer.update(grads, opt_state)
            return optax.apply_updates(params, updates), opt_state, loss

        function = self.jax.jit(step, donate_argnums=(0, 1))
        state = [self.params, self.jax.jit(optimizer.init)(self.params)]
        self.params = None  # donated: a second copy does not fit beside Adam's moments

        def run():
            state[0], state[1], loss = function(*state, self.given)
            self.jax.block_until_ready(state)
            return lambda: [np.asarray(loss)]

        return run


# -------------------------------------------------------------------------------------- ml-mdm's, in PyTorch
class Theirs:
    """ml-mdm's modules, eager as ml-mdm runs them, float32, with PyTorch's fused Adam."""

    def __init__(self, case: Case, folder: str):
        sys.path.insert(0, folder)
        import torch

        self.case, self.torch = case, torch
        self.model = self._build(case.net, case.text_channels)
        self.model.load_state_dict({k: torch.from_numpy(v) for k, v in weights(case).items()}, assign=True)
        given = inputs(case)
        nchw = lambda x: torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))  # noqa: E731
        self.images, self.targets = ([nchw(x) for x in given[key]] for key in ("images", "targets"))
        self.times = torch.from_numpy(given["times"]).long()
        self.text, self.null = torch.from_numpy(given["text"]), torch.from_numpy(given["null"])
        self.mask = torch.from_numpy(given["mask"]).float()

    def _build(self, net, text_channels):
        from ml_mdm.models.nested_unet import NestedUNet
        from ml_mdm.models.unet import UNet

        config = self._config(net, text_channels, nesting=False)
        # parameters without storage until the weights are assigned; the frequency table is made for real below
        with self.torch.device("meta"):
            model = (UNet if net.inner is None else NestedUNet)(3, 3, config)
        for module in model.modules():
            if hasattr(module, "t_emb"):
                half = module.t_emb.shape[1]
                steps = self.torch.arange(half, dtype=self.torch.float)
                module.t_emb = self.torch.exp(steps * -(math.log(10000) / half)).unsqueeze(0)
        return model

    def _config(self, net, text_channels, nesting):
        from ml_mdm.models.nested_unet import NestedUNetConfig
        from ml_mdm.models.unet import ResNetConfig, UNetConfig

        fields = {
            "resolution_channels": list(net.channels),
            "num_resnets_per_resolution": list(net.num_res_blocks),
            "attention_levels": [i for i, n in enumerate(net.num_attn_layers) if n],
            "num_attention_layers": list(net.num_attn_layers),
            "conditioning_feature_dim": text_channels,
            "conditioning_feature_proj_dim": net.text_proj_channels or -1,
            "num_lm_head_layers": net.num_text_layers,
            "masked_cross_attention": int(net.masked_cross_attention),
            "micro_conditioning": ",".join(f"{name}:{default}" for name, default in net.micro) or None,
            "temporal_dim": net.emb_channels,
            "nesting": nesting,
            "resnet_config": ResNetConfig(num_groups_norm=net.num_groups, use_attention_ffn=net.attention_ffn),
        }
        if net.inner is None:
            return UNetConfig(**fields, skip_mid_blocks=not net.mid_blocks)
        inner = self._config(net.inner, text_channels, nesting=True)
        return NestedUNetConfig(**fields, skip_normalization=not net.normalize_input, inner_config=inner)

    def _one_or_list(self, images):
        return images if len(images) > 1 else images[0]

    def _predict(self):
        out = self.model(self._one_or_list(self.images), self.times, self.text, self.mask)
        return out if isinstance(out, list) else [out]

    def prepare(self, op: str):
        """A function that runs the op once."""
        if op == "train":
            return self._prepare_train()
        if op == "sample":
            return self._prepare_sample()

        def run():
            with self.torch.no_grad():
                out = self._predict()
            return lambda: [x.numpy().transpose(0, 2, 3, 1) for x in out]

        return run

    def _prepare_train(self):
        optimizer = self.torch.optim.Adam(self.model.parameters(), lr=LEARNING_RATE, betas=BETAS, eps=EPS, fused=True)

        def run():
            optimizer.zero_grad(set_to_none=True)
            pairs = zip(self._predict(), self.targets, strict=True)
            loss = sum(((prediction - target) ** 2).mean() for prediction, target in pairs)
            loss.backward()
            optimizer.step()
            return lambda: [loss.detach().numpy()]

        return run

    def _prepare_sample(self):
        """One guided DDIM step: text read once a sample, both conditions in one batch, unconditional rows first."""
        from kaleido_jax.diffusion.schedule import alpha_bar_table

        torch, table = self.torch, alpha_bar_table(self.case.diffusion.schedule, self.case.diffusion.num_steps)
        scales = cfg.scales(cfg.Model(denoiser=self.case.net))
        shifted = lambda g, scale: g / (g + (1 - g) * scale**self.case.diffusion.shift_power)  # noqa: E731
        times = torch.full((2 * self.case.batch,), TIME - 1)
        with torch.no_grad():
            both, masks = torch.cat([self.null, self.text]), torch.cat([self.mask, self.mask])
            condition = self.model.forward_conditioning(both, masks)

        def run():
            with torch.no_grad():
                doubled = self._one_or_list([torch.cat([x, x]) for x in self.images])
                out = self.model.forward_denoising(doubled, times, *condition)
                moved = []
                for x, v, scale in zip(self.images, out if isinstance(out, list) else [out], scales, strict=True):
                    v_u, v_c = v.chunk(2)
                    v = v_u + GUIDANCE * (v_c - v_u)
                    t, s = (shifted(float(table[i]), scale) for i in (TIME, NEXT_TIME))
                    x0 = (math.sqrt(t) * x - math.sqrt(1 - t) * v).clamp(-1, 1)
                    eps = (x - math.sqrt(t) * x0) / math.sqrt(1 - t)
                    moved.append(math.sqrt(s) * x0 + math.sqrt(1 - s) * eps)
            return lambda: [x.numpy().transpose(0, 2, 3, 1) for x in moved]

        return run
