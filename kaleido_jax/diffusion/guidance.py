"""Guidance rules: how predictions are combined into one at each evaluation of the network.

A rule is a small frozen dataclass with two methods:

    state = rule.init(batch, shapes)                             # carried from one evaluation to the next; mostly ()
    predictions, state = rule(model, images, times, keys, state)

`model` is a `Denoiser`: a network with the condition of these samples. `from_config` builds the rule that a config
names, `register` adds one. Lists are over resolutions, high to low; every resolution is guided in the same way.

gamma = 1 is the conditional prediction. As a Python number it costs one row per sample; as an array it lets one
compiled function serve every gamma, and always costs two.
"""

import dataclasses
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

import kaleido_jax.config.schema as cfg
from kaleido_jax.array_types import (
    Condition,
    Keys,
    Mask,
    Pyramid,
    Rows,
    Sample,
    Scalar,
    Scales,
    Shapes,
    States,
    Times,
)
from kaleido_jax.diffusion.process import alpha_bars_at, change_prediction, expand, per_sample_normal
from kaleido_jax.errors import user_error

Weight = float | Scalar
RuleState = PyTree[Array]


# ------------------------------------------------------------------------------------------- the model of a rule
@runtime_checkable
class Denoise(Protocol):
    """The network: predictions from noisy images at network times, under a condition."""

    def __call__(self, images: Pyramid, times: Times, condition: Condition, /) -> Pyramid:
        """One evaluation; rows are samples."""


@runtime_checkable
class ReadCondition(Protocol):
    """The part of the network that runs once per sample: states of c (and z), each with its mask -> condition."""

    def __call__(self, *states_and_masks: States | Mask) -> Condition:
        """Takes (H_c, mask) or (H_c, mask, H_z, mask)."""


@dataclass(frozen=True, kw_only=True)
class Denoiser:
    """A network with the condition of a batch, as rules use it."""

    denoise: Denoise
    cond: Condition  # computed once, outside of the sampler's loop
    uncond: Condition  # of what replaces c and z in training: the empty caption, no position of z
    read: ReadCondition  # for rules that change the states and recompute the condition
    states: tuple[Array, ...]  # what `cond` was computed from: states, mask, states, mask, ...
    worse: "Denoiser | None" = None  # weaker weights, under the same captions and latents

    def predict(self, images: Pyramid, times: Times) -> Pyramid:
        """The conditional prediction."""
        return self.denoise(images, times, self.cond)

    def predict_both(self, images: Pyramid, times: Times) -> tuple[Pyramid, Pyramid]:
        """(conditional, unconditional) predictions from one doubled batch, unconditional rows first as in MDM."""
        both = jax.tree.map(lambda u, c: jnp.concatenate([u, c]), self.uncond, self.cond)
        doubled = self.denoise([jnp.concatenate([x, x]) for x in images], jnp.concatenate([times, times]), both)
        uncond, cond = zip(*(jnp.split(v, 2) for v in doubled), strict=True)
        return list(cond), list(uncond)


@runtime_checkable
class Rule(Protocol):
    """A guidance rule, which the sampler's loop calls at each evaluation."""

    def init(self, batch: Rows, shapes: Shapes) -> RuleState:
        """The state before the first evaluation, for samples of these shapes."""

    def __call__(
        self, model: Denoiser, images: Pyramid, times: Times, keys: Keys, state: RuleState
    ) -> tuple[Pyramid, RuleState]:
        """(predictions, state); `keys` are the samples' own, the same at every evaluation."""


# ----------------------------------------------------------------------------------------------------------- rules
def is_off(gamma: Weight) -> bool:
    """Whether gamma is known to be 1 before compilation, so that the conditional prediction is enough."""
    return not isinstance(gamma, jax.Array) and gamma == 1


def extrapolate(good: Pyramid, bad: Pyramid, gamma: Weight) -> Pyramid:
    """v = v_bad + gamma (v_good - v_bad)."""
    return [v_bad + gamma * (v_good - v_bad) for v_good, v_bad in zip(good, bad, strict=True)]


@dataclass(frozen=True, kw_only=True)
class CFG:
    """Classifier-free guidance: v = v_u + gamma (v_c - v_u) (Ho & Salimans 2022, Eq. 6; Kaleido, Eq. 4).

    (c, z) are dropped together, as the reference of Kaleido's Eq. 8 is p(x).
    """

    gamma: Weight

    def init(self, batch: Rows, shapes: Shapes) -> RuleState:
        """No state."""
        return ()

    def __call__(
        self, model: Denoiser, images: Pyramid, times: Times, keys: Keys, state: RuleState
    ) -> tuple[Pyramid, RuleState]:
        """Away from the unconditional prediction."""
        if is_off(self.gamma):
            return model.predict(images, times), state
        return extrapolate(*model.predict_both(images, times), self.gamma), state


@dataclass(frozen=True, kw_only=True)
class Autoguidance:
    """v = v_bad + gamma (v_good - v_bad), away from a worse model of p(x | c, z) (Karras et al. 2024, 2406.02507)."""

    gamma: Weight

    def init(self, batch: Rows, shapes: Shapes) -> RuleState:
        """No state."""
        return ()

    def __call__(
        self, model: Denoiser, images: Pyramid, times: Times, keys: Keys, state: RuleState
    ) -> tuple[Pyramid, RuleState]:
        """Away from `model.worse`.

        Raises:
          UserError: the model has no worse version.
        """
        if is_off(self.gamma):
            return model.predict(images, times), state
        if model.worse is None:
            raise user_error(
                "autoguidance", "`bad_params` of a worse model", "load the model with config.sample.guidance"
            )
        return extrapolate(model.predict(images, times), model.worse.predict(images, times), self.gamma), state


@dataclass(frozen=True, kw_only=True)
class APG:
    """Adaptive projected guidance: x0 = x0_c + (gamma - 1) (u_orthogonal + eta u_parallel) (Sadat et al. 2024).

    arXiv 2410.02416, Algorithm 1, on x0 at every resolution. The update u = x0_c - x0_u, plus `momentum` times the last
    one, is clipped to an L2 norm of at most `threshold` and split into parts parallel and orthogonal to x0_c. The
    last update is the state; Heun's two evaluations per step count as two.
    """

    gamma: Weight
    eta: float  # share of the parallel part that is kept; 1 = all
    threshold: float  # at the innermost resolution; multiplied by the scale at the others; 0 = no limit
    momentum: float  # a negative one repels from the last update
    diffusion: cfg.Diffusion
    scales: Scales

    def init(self, batch: Rows, shapes: Shapes) -> RuleState:
        """No update yet."""
        return [jnp.zeros((batch, *shape)) for shape in shapes]

    def __call__(
        self, model: Denoiser, images: Pyramid, times: Times, keys: Keys, state: RuleState
    ) -> tuple[Pyramid, RuleState]:
        """Away from the unconditional prediction, without the part that would only saturate the image."""
        if is_off(self.gamma):
            return model.predict(images, times), state
        cond, uncond = model.predict_both(images, times)
        alpha_bars = alpha_bars_at(self.diffusion, times, self.scales)
        space, predictions, updates = self.diffusion.prediction, [], []
        for x_t, v_c, v_u, alpha_bar, last, scale in zip(
            images, cond, uncond, alpha_bars, state, self.scales, strict=True
        ):
            x0_c, x0_u = (change_prediction(v, x_t, alpha_bar, space, "x0") for v in (v_c, v_u))
            update = x0_c - x0_u + self.momentum * last
            updates.append(update)
            if self.threshold:  # the norm of an image grows with its side
                norm = jnp.sqrt(_dot(update, update))
                update = update * jnp.minimum(1, self.threshold * scale / jnp.maximum(norm, 1e-12))
            parallel = _dot(update, x0_c) / jnp.maximum(_dot(x0_c, x0_c), 1e-12) * x0_c
            x0 = x0_c + (self.gamma - 1) * (update - (1 - self.eta) * parallel)
            predictions.append(change_prediction(x0, x_t, alpha_bar, "x0", space))
        return predictions, updates


def _dot(a: Sample, b: Sample) -> Sample:
    """Inner products of samples, shaped to multiply the batch."""
    return expand(jnp.sum((a * b).reshape(a.shape[0], -1), axis=1), a)


# --------------------------------------------------------------------------------------------- rules around a rule
@dataclass(frozen=True, kw_only=True)
class Interval:
    """`rule` where low < sigma <= high, `outside` elsewhere (Kynkäänniemi et al. 2024, 2404.07724).

    sigma = sqrt((1 - alpha_bar) / alpha_bar) of the innermost resolution, EDM's noise level. Only the branch taken is
    run, so the unconditional rows cost nothing outside the interval. All rows must be at one time, as in a sampler.
    """

    rule: Rule
    low: float
    high: float
    diffusion: cfg.Diffusion
    outside: Rule = CFG(gamma=1.0)  # passes the state of `rule` on

    def init(self, batch: Rows, shapes: Shapes) -> RuleState:
        """The state of `rule`."""
        return self.rule.init(batch, shapes)

    def __call__(
        self, model: Denoiser, images: Pyramid, times: Times, keys: Keys, state: RuleState
    ) -> tuple[Pyramid, RuleState]:
        """`rule` or `outside`."""
        (alpha_bar,) = alpha_bars_at(self.diffusion, times[:1], (1,))
        sigma = jnp.sqrt((1 - alpha_bar[0]) / alpha_bar[0])
        inside, outside = (lambda *args, rule=rule: rule(model, *args) for rule in (self.rule, self.outside))
        return jax.lax.cond((self.low < sigma) & (sigma <= self.high), inside, outside, images, times, keys, state)


@dataclass(frozen=True, kw_only=True)
class CADS:
    """Condition-annealed sampling: `rule` under a condition with fresh noise at each evaluation (Sadat et al. 2023).

    arXiv 2310.17347, Section 3, for each pair of states and mask separately:

        y' = sqrt(a) y + noise std(y) sqrt(1 - a) n,    n ~ N(0, I)

    a falls from 1 at the share `low` of the time to 0 at `high`. A share `mix` of y' is rescaled to the mean and
    deviation of y, both over a sample's valid positions. The paper has no std(y), since its conditions have unit
    deviation; T5's states do not. The unconditional rows are not changed.
    """

    rule: Rule
    low: float  # tau_1
    high: float  # tau_2
    noise: float  # s, in standard deviations of the states
    mix: float  # psi
    num_steps: int  # N of the schedule

    def init(self, batch: Rows, shapes: Shapes) -> RuleState:
        """The state of `rule`."""
        return self.rule.init(batch, shapes)

    def __call__(
        self, model: Denoiser, images: Pyramid, times: Times, keys: Keys, state: RuleState
    ) -> tuple[Pyramid, RuleState]:
        """`rule` on the model with another condition."""
        # The sampler folds the same keys with steps 0..N+1.
        folded = jax.vmap(jax.random.fold_in)(keys, times + self.num_steps + 2)
        pairs = list(zip(model.states[::2], model.states[1::2], strict=True))
        draws = per_sample_normal(folded, tuple(states.shape[1:] for states, _ in pairs))
        noisy = []
        for (states, mask), draw in zip(pairs, draws, strict=True):
            noisy += [self.anneal(states, mask, draw, times), mask]
        return self.rule(dataclasses.replace(model, cond=model.read(*noisy)), images, times, keys, state)

    def anneal(self, states: States, mask: Mask, draw: States, times: Times) -> States:
        """The noisy states at network times 0..N-1; padding is not changed."""
        share = (times + 1) / self.num_steps
        a = jnp.where(share <= self.low, 1.0, jnp.clip((self.high - share) / max(self.high - self.low, 1e-6), 0, 1))
        valid = mask[:, :, None]
        y = states.astype(jnp.float32)
        mean, std = _moments(y, valid)
        a = expand(a, y)
        noisy = jnp.sqrt(a) * y + self.noise * std * jnp.sqrt(1 - a) * draw
        noisy_mean, noisy_std = _moments(noisy, valid)
        rescaled = (noisy - noisy_mean) / jnp.maximum(noisy_std, 1e-6) * std + mean
        mixed = self.mix * rescaled + (1 - self.mix) * noisy
        return jnp.where(valid, mixed.astype(states.dtype), states)


def _moments(states: States, valid: Array) -> tuple[Float[Array, "b 1 1"], Float[Array, "b 1 1"]]:
    """Mean and deviation over a sample's valid positions; 0 without any."""
    count = jnp.maximum(valid.sum((1, 2), keepdims=True) * states.shape[2], 1)
    mean = (states * valid).sum((1, 2), keepdims=True) / count
    return mean, jnp.sqrt((((states - mean) * valid) ** 2).sum((1, 2), keepdims=True) / count)


# --------------------------------------------------------------------------------------------------- rules by name
@runtime_checkable
class BuildRule(Protocol):
    """Makes a rule from the config's settings."""

    def __call__(self, sample: cfg.Sample, diffusion: cfg.Diffusion, scales: Scales, gamma: Weight, /) -> Rule:
        """With the number gamma = 1.0 the rule must not guide, and must pass its state on unchanged."""


RULES: dict[str, BuildRule] = {
    "cfg": lambda sample, diffusion, scales, gamma: CFG(gamma=gamma),
    "autoguidance": lambda sample, diffusion, scales, gamma: Autoguidance(gamma=gamma),
    "apg": lambda sample, diffusion, scales, gamma: APG(
        gamma=gamma,
        eta=sample.apg_eta,
        threshold=sample.apg_threshold,
        momentum=sample.apg_momentum,
        diffusion=diffusion,
        scales=scales,
    ),
    "cads": lambda sample, diffusion, scales, gamma: CADS(
        rule=CFG(gamma=gamma),
        low=sample.cads_tau[0],
        high=sample.cads_tau[1],
        noise=sample.cads_noise,
        mix=sample.cads_mix,
        num_steps=diffusion.num_steps,
    ),
}


def register(name: str, build: BuildRule) -> None:
    """Makes `build` the rule of config.sample.guidance = name."""
    RULES[name] = build
    cfg.allow("sample.guidance", name)


def from_config(sample: cfg.Sample, diffusion: cfg.Diffusion, scales: Scales, gamma: Weight | None) -> Rule:
    """The rule of `sample.guidance` and `guidance_interval` with the weight gamma; None means no guidance."""
    build = RULES[sample.guidance]
    off = build(sample, diffusion, scales, 1.0)
    if gamma is None:
        return off
    rule = build(sample, diffusion, scales, gamma)
    if not sample.guidance_interval:
        return rule
    low, high = sample.guidance_interval
    return Interval(rule=rule, low=low, high=high, diffusion=diffusion, outside=off)
