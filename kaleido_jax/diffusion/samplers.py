"""Samplers: the reverse process, one evaluation of the network at a time, every resolution at once.

`start` draws the noise, `evaluate` moves x by one evaluation, `finish` clips the last x; `reverse` is all of it as one
lax.scan. Within an evaluation the guided network predicts, `reverse_step` turns each prediction into x0
(`process.to_x0_eps`), and the sampler's `update` moves x to the next noise level.

A sampler is a small frozen dataclass: `times` says where the network is evaluated, `init` what is carried beside x, and
`update` acts on one resolution.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

import kaleido_jax.config.schema as cfg
from kaleido_jax.array_types import Keys, Pyramid, Sample, Scalar, Scales, Shapes
from kaleido_jax.diffusion.guidance import Denoiser, Rule, RuleState
from kaleido_jax.diffusion.process import per_sample_normal, threshold, to_x0_eps
from kaleido_jax.diffusion.schedule import alpha_bar_table, log_snr, shift, step_list

Carried = PyTree[Array]
Steps = Int[np.ndarray, "n"]
Evaluations = Int[np.ndarray, "m 3"]


class Levels(NamedTuple):
    """alpha_bar at the evaluation and at both ends of the step, from t to the less noisy s."""

    at: Scalar
    t: Scalar
    s: Scalar


@runtime_checkable
class Sampler(Protocol):
    """The parts of a sampler."""

    @property
    def is_noisy(self) -> bool:
        """Whether `update` reads the noise; otherwise none is drawn."""

    def times(self, steps: Steps) -> Evaluations:
        """Steps t_n > ... > t_0 = 0 -> (at, t, s) of each evaluation, as steps 0..N."""

    def init(self, x: Sample) -> Carried:
        """What one resolution carries beside x, before the first evaluation."""

    def update(
        self, x: Sample, x0: Sample, carried: Carried, levels: Levels, noise: Sample | float
    ) -> tuple[Sample, Carried]:
        """(x, carried) after an evaluation that predicted x0, which is already thresholded."""


def once_a_step(steps: Steps) -> Evaluations:
    """The evaluations of a sampler that evaluates the network only at t."""
    return np.stack([steps[:-1], steps[:-1], steps[1:]], axis=1)


@dataclass(frozen=True, kw_only=True)
class DDPM:
    """Ancestral: a draw from the posterior q(x_s | x_t, x0) (Ho et al. 2020, Eq. 7)."""

    is_noisy: bool = True

    def times(self, steps: Steps) -> Evaluations:
        """Once a step."""
        return once_a_step(steps)

    def init(self, x: Sample) -> Carried:
        """Nothing."""
        return ()

    def update(
        self, x: Sample, x0: Sample, carried: Carried, levels: Levels, noise: Sample | float
    ) -> tuple[Sample, Carried]:
        """The variance is 0 on the last step, where s = 1."""
        _, t, s = levels
        a = t / s
        b = 1 - a
        mean = x0 * b * jnp.sqrt(s) / (1 - t) + x * jnp.sqrt(a) * (1 - s) / (1 - t)
        variance = b * (1 - s) / (1 - t)
        return mean + jnp.sqrt(variance) * noise, carried


@dataclass(frozen=True, kw_only=True)
class DDIM:
    """x_s = sqrt(s) x0 + sqrt(1 - s - variance) eps + sqrt(variance) noise (Song et al. 2021, Eq. 12 and 16)."""

    eta: float = 0.0  # 1 equals the ancestral step, 0 draws no noise

    @property
    def is_noisy(self) -> bool:
        """With an eta above 0."""
        return self.eta > 0

    def times(self, steps: Steps) -> Evaluations:
        """Once a step."""
        return once_a_step(steps)

    def init(self, x: Sample) -> Carried:
        """Nothing."""
        return ()

    def update(
        self, x: Sample, x0: Sample, carried: Carried, levels: Levels, noise: Sample | float
    ) -> tuple[Sample, Carried]:
        """Eps is recomputed from x and the thresholded x0; it is not the network's prediction."""
        _, t, s = levels
        eps = (x - jnp.sqrt(t) * x0) / jnp.sqrt(1 - t)
        variance = self.eta**2 * (1 - t / s) * (1 - s) / (1 - t)
        direction = jnp.sqrt(jnp.maximum(1 - s - variance, 0))  # eta = 1 may round below 0
        return x0 * jnp.sqrt(s) + eps * direction + jnp.sqrt(variance) * noise, carried


@dataclass(frozen=True, kw_only=True)
class DPMpp2M:
    """DPM-Solver++(2M): DDIM with x0 extrapolated from the last two predictions (Lu et al. 2022, Algorithm 2).

    The exponential integrator with constant x0 is DDIM without noise, so only x0 differs from DDIM.
    """

    is_noisy: bool = False

    def times(self, steps: Steps) -> Evaluations:
        """Once a step."""
        return once_a_step(steps)

    def init(self, x: Sample) -> Carried:
        """The last x0 and its alpha_bar; alpha_bar = 1 means that there is no last x0."""
        return jnp.zeros_like(x), jnp.ones((), x.dtype)

    def update(
        self, x: Sample, x0: Sample, carried: Carried, levels: Levels, noise: Sample | float
    ) -> tuple[Sample, Carried]:
        """A DDIM step with the extrapolated x0."""
        extrapolated = self.extrapolate(x0, carried, levels)
        moved, _ = DDIM().update(x, extrapolated, (), levels, 0.0)
        return moved, (x0, levels.t)

    def extrapolate(self, x0: Sample, carried: Carried, levels: Levels) -> Sample:
        """D = x0 + h / (2 h_before) (x0 - x0_before), h the step in lambda = ln(alpha / sigma).

        Plain x0 on the first step and on the last, where s = 1 makes h infinite.
        """
        x0_before, level_before = carried
        before, t, s = (log_snr(level) / 2 for level in (level_before, levels.t, levels.s))
        between = (level_before < 1) & (levels.s < 1)
        weight = jnp.where(between, (s - t) / (2 * jnp.where(between, t - before, 1)), 0)
        return x0 + weight * (x0 - x0_before)


@dataclass(frozen=True, kw_only=True)
class Heun:
    """Heun's second order on dy / d sigma = (y - x0) / sigma (Karras et al. 2022, Algorithm 1 without churn).

    y = x / alpha and sigma = sqrt((1 - alpha_bar) / alpha_bar). An evaluation at t makes an Euler step to s and carries
    its start and slope; one at s repeats the step with the mean slope. The evaluation at s = 0 is left out, so the last
    step is Euler's. Not suited to step lists with `start_at_n`: with the squared cosine the first step would then jump
    from sigma = 2e4 to a few tens.
    """

    is_noisy: bool = False

    def times(self, steps: Steps) -> Evaluations:
        """At both ends of every step but the last."""
        once = once_a_step(steps)
        return np.stack([once, once[:, [2, 1, 2]]], axis=1).reshape(-1, 3)[:-1]

    def init(self, x: Sample) -> Carried:
        """Start and slope; the first evaluation reads neither."""
        return jnp.zeros_like(x), jnp.zeros_like(x)

    def update(
        self, x: Sample, x0: Sample, carried: Carried, levels: Levels, noise: Sample | float
    ) -> tuple[Sample, Carried]:
        """An Euler step, or the same step again with the mean slope."""
        start, slope = carried
        at, t, s = (jnp.sqrt((1 - level) / level) for level in levels)
        y = x / jnp.sqrt(levels.at)
        here = (y - x0) / at
        again = levels.at != levels.t
        start, mean = jnp.where(again, start, y), jnp.where(again, (slope + here) / 2, here)
        return (start + (s - t) * mean) * jnp.sqrt(levels.s), (start, here)


# ------------------------------------------------------------------------------------------------ samplers by name
@runtime_checkable
class BuildSampler(Protocol):
    """Makes a sampler from the config's settings."""

    def __call__(self, sample: cfg.Sample, /) -> Sampler:
        """Reads the sampler's own settings, e.g. `ddim_eta`."""


SAMPLERS: dict[str, BuildSampler] = {
    "ddpm": lambda sample: DDPM(),
    "ddim": lambda sample: DDIM(eta=sample.ddim_eta),
    "dpmpp_2m": lambda sample: DPMpp2M(),
    "heun": lambda sample: Heun(),
}


def register(name: str, build: BuildSampler) -> None:
    """Makes `build` the sampler of config.sample.sampler = name."""
    SAMPLERS[name] = build
    cfg.allow("sample.sampler", name)


# -------------------------------------------------------------------------------------------------------- the loop
class Reversing(NamedTuple):
    """Where the reverse process is, between two evaluations; lists over resolutions, high to low."""

    images: Pyramid  # x_t
    carried: list[Carried]  # what the sampler carries beside them
    rule: RuleState


def evaluations(diffusion: cfg.Diffusion, sample: cfg.Sample) -> Evaluations:
    """(at, t, s) of each evaluation of the network, as steps 0..N, in order.

    Steps from a noise sigma / alpha below `sample.sigma_min` are left out, so the last of the others goes right to x0.
    A network that predicts x0 through fewer channels than a patch has numbers cannot copy a nearly clean image, and an
    ancestral sampler with many steps would have it redrawn again and again.
    """
    steps = step_list(diffusion.num_steps, sample.num_steps, sample.start_at_n)
    alpha_bars = alpha_bar_table(diffusion.schedule, diffusion.num_steps)[steps[:-1]].astype(np.float64)
    asked = (1 - alpha_bars) / alpha_bars >= sample.sigma_min**2
    asked[0] = True
    steps = np.append(steps[:-1][asked], steps[-1])
    return SAMPLERS[sample.sampler](sample).times(steps)


def start(rule: Rule, keys: Keys, diffusion: cfg.Diffusion, sample: cfg.Sample, shapes: Shapes) -> Reversing:
    """Pure noise; sample i depends on its key alone."""
    # Steps are 1..N and the start uses N + 1, so no draw is used twice.
    images = _normal(keys, diffusion.num_steps + 1, shapes)
    sampler = SAMPLERS[sample.sampler](sample)
    return Reversing(images, [sampler.init(x) for x in images], rule.init(keys.shape[0], shapes))


def evaluate(
    model: Denoiser,
    rule: Rule,
    keys: Keys,
    state: Reversing,
    evaluation: Int[Array, "3"],
    diffusion: cfg.Diffusion,
    sample: cfg.Sample,
    scales: Scales,
) -> tuple[Reversing, Pyramid]:
    """The state after one of the `evaluations`, and the x0 that was predicted, thresholded.

    Nothing here depends on the number of steps, so one compiled function serves all of them.
    """
    sampler, at = SAMPLERS[sample.sampler](sample), evaluation[0]
    times = jnp.full(keys.shape[:1], at - 1, jnp.int32)  # the network gets the step minus one
    predictions, rule_state = rule(model, state.images, times, keys, state.rule)
    shapes = tuple(x.shape[1:] for x in state.images)
    noise = _normal(keys, at, shapes) if sampler.is_noisy else [0.0] * len(shapes)
    levels = Levels(*jnp.asarray(alpha_bar_table(diffusion.schedule, diffusion.num_steps), float)[evaluation])
    images, carried, x0 = reverse_step(
        sampler, state.images, state.carried, predictions, noise, levels, diffusion, sample, scales
    )
    return Reversing(images, carried, rule_state), x0


def finish(state: Reversing, sample: cfg.Sample) -> Pyramid:
    """The last x of every resolution, clipped to [-1, 1] where the threshold is not "none"."""
    return state.images if sample.threshold == "none" else [jnp.clip(x, -1, 1) for x in state.images]


def _normal(keys: Keys, purpose: Int[Array, ""] | int, shapes: Shapes) -> Pyramid:
    return per_sample_normal(jax.vmap(jax.random.fold_in, (0, None))(keys, purpose), shapes)


def reverse_step(
    sampler: Sampler,
    images: Pyramid,
    carried: list[Carried],
    predictions: Pyramid,
    noise: Pyramid | list[float],
    levels: Levels,
    diffusion: cfg.Diffusion,
    sample: cfg.Sample,
    scales: Scales,
) -> tuple[Pyramid, list[Carried], Pyramid]:
    """(images, carried, x0) after one evaluation of the network; lists over resolutions, high to low.

    `levels` are the innermost resolution's; the others' are shifted by their scale.
    """
    moved, predicted = [], []
    for x, kept, prediction, draw, scale in zip(images, carried, predictions, noise, scales, strict=True):
        shifted = Levels(*(shift(level, scale, diffusion.shift_power) for level in levels))
        x0, _ = to_x0_eps(prediction, x, jnp.full(x.shape[:1], shifted.at), diffusion.prediction)
        predicted.append(threshold(x0, sample.threshold))
        moved.append(sampler.update(x, predicted[-1], kept, shifted, draw))
    return [x for x, _ in moved], [kept for _, kept in moved], predicted


def reverse(
    model: Denoiser,
    rule: Rule,
    keys: Keys,
    diffusion: cfg.Diffusion,
    sample: cfg.Sample,
    shapes: Shapes,
    scales: Scales,
) -> Pyramid:
    """Samples x ~ p(x | condition) from pure noise, as one scan over the evaluations.

    Args:
      model: the network and its condition.
      rule: guidance.
      keys: one per sample; sample i depends on its key alone, not on the batch or the devices.
      diffusion: the process.
      sample: sampler, number of steps, where they end, threshold, ddim_eta.
      shapes: of one sample at each resolution.
      scales: of each resolution relative to the innermost.

    Returns:
      The last x of every resolution, clipped to [-1, 1] where the threshold is not "none".
    """

    def one(state: Reversing, evaluation: Int[Array, "3"]) -> tuple[Reversing, None]:
        return evaluate(model, rule, keys, state, evaluation, diffusion, sample, scales)[0], None

    state = start(rule, keys, diffusion, sample, shapes)
    state, _ = jax.lax.scan(one, state, jnp.asarray(evaluations(diffusion, sample)))
    return finish(state, sample)
