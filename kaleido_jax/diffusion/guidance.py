"""Guidance rules: how two predictions become one. Rules compose; `guided_rule` puts together what the config names.

A rule is (images, times (B,)) -> predictions, lists over resolutions, high to low. APG's has a memory:
(images, times, memory) -> (predictions, memory).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from kaleido_jax.config.schema import Diffusion, Sample
from kaleido_jax.diffusion.process import change_prediction, expand, per_sample_normal
from kaleido_jax.diffusion.schedule import alpha_bar_table, shift

Denoise = Callable[..., list]  # (images, times (B,), condition) -> predictions, each a list over resolutions
Weight = float | Float[Array, ""]


def no_guidance(denoise: Denoise, condition):
    """The conditional prediction alone."""
    return lambda images, times: denoise(images, times, condition)


# ------------------------------------------------------------------------------- pairs: what guidance leads away from
def in_one_batch(denoise: Denoise, condition, unconditional):
    """(images, times) -> [(v_u, v_c)] of every resolution from one doubled batch, unconditional rows first."""
    both = jax.tree.map(lambda u, c: jnp.concatenate([u, c]), unconditional, condition)

    def pair(images, times):
        doubled = denoise([jnp.concatenate([x, x]) for x in images], jnp.concatenate([times, times]), both)
        return [tuple(jnp.split(v, 2)) for v in doubled]

    return pair


def of_two_models(good, bad):
    """(images, times) -> [(v_bad, v_good)] from two rules of different parameters."""
    return lambda images, times: list(zip(bad(images, times), good(images, times), strict=True))


# ------------------------------------------------------------------------------------------------- from two to one
def extrapolate(pair, gamma: Weight):
    """v = v_u + gamma (v_c - v_u) at every resolution."""
    return lambda images, times: [v_u + gamma * (v_c - v_u) for v_u, v_c in pair(images, times)]


def classifier_free(denoise: Denoise, condition, unconditional, gamma: Weight):
    """v = v_u + gamma (v_c - v_u) at every resolution (Ho & Salimans 2022; Kaleido, Eq. 4).

    gamma = 1 is the conditional prediction; given as a number, it skips the doubling.
    """
    if not isinstance(gamma, jax.Array) and gamma == 1:
        return no_guidance(denoise, condition)
    return extrapolate(in_one_batch(denoise, condition, unconditional), gamma)


def autoguidance(good, bad, gamma: Weight):
    """v = v_bad + gamma (v_good - v_bad) (Karras et al. 2024, arXiv 2406.02507): away from a worse model of c.

    `good` and `bad` are rules, e.g. `no_guidance` with the parameters at hand and with those of an early snapshot.
    """
    return extrapolate(of_two_models(good, bad), gamma)


def projected(pair, gamma: Weight, diffusion: Diffusion, sample: Sample, scales: tuple[int, ...]):
    """APG: x0 = x0_c + (gamma - 1) (u_orthogonal + apg_eta u_parallel) (Sadat et al. 2024, arXiv 2410.02416).

    On x0, at every resolution: the update u = x0_c - x0_u plus `apg_momentum` times the last one; shortened to an
    L2 norm of at most `apg_threshold` (times the resolution's scale, as the norm of an image grows with its side);
    split into parts parallel and orthogonal to x0_c. The last update is the memory; Heun's two looks a step count
    as two.
    """
    table = jnp.asarray(alpha_bar_table(diffusion.schedule, diffusion.num_steps))

    def guided(images, times, memory):
        predictions, updates = [], []
        for x_t, (v_u, v_c), last, scale in zip(images, pair(images, times), memory, scales, strict=True):
            alpha_bar = shift(table[times + 1], scale, diffusion.shift_power)
            x0_u, x0_c = (change_prediction(v, x_t, alpha_bar, diffusion.prediction, "x0") for v in (v_u, v_c))
            update = x0_c - x0_u + sample.apg_momentum * last
            updates.append(update)
            if sample.apg_threshold:
                norm = jnp.sqrt(_dot(update, update))
                update = update * jnp.minimum(1, sample.apg_threshold * scale / jnp.maximum(norm, 1e-12))
            parallel = _dot(update, x0_c) / jnp.maximum(_dot(x0_c, x0_c), 1e-12) * x0_c
            x0 = x0_c + (gamma - 1) * (update - (1 - sample.apg_eta) * parallel)
            predictions.append(change_prediction(x0, x_t, alpha_bar, "x0", diffusion.prediction))
        return predictions, updates

    return guided


def _dot(a, b):
    """Inner products of samples, shaped to multiply the batch."""
    return expand(jnp.sum((a * b).reshape(a.shape[0], -1), axis=1), a)


# ------------------------------------------------------------------------------------------------ when and for what
def with_memory(rule):
    """A rule without memory in the form of one with."""
    return lambda images, times, memory: (rule(images, times), memory)


def within(interval: tuple[float, float], diffusion: Diffusion, inside, outside):
    """`inside` where low < sigma <= high, else `outside`; both with memory (Kynkäänniemi et al. 2024).

    sigma = sqrt((1 - gamma) / gamma) of the innermost resolution, the noise alpha_bar of EDM. A branch not taken is not
    run, so the unconditional pass costs nothing outside. All rows must be at one time, as they are in a sampler.
    """
    low, high = interval
    table = jnp.asarray(alpha_bar_table(diffusion.schedule, diffusion.num_steps))

    def guided(images, times, memory):
        gamma = table[times[0] + 1]
        sigma = jnp.sqrt((1 - gamma) / gamma)
        return jax.lax.cond((low < sigma) & (sigma <= high), inside, outside, images, times, memory)

    return guided


def annealed(
    states: Float[Array, "b l d"],
    mask: Bool[Array, "b l"],
    noise: Float[Array, "b l d"],
    times: Int[Array, "b"],
    diffusion: Diffusion,
    sample: Sample,
) -> Float[Array, "b l d"]:
    """The condition of CADS (Sadat et al. 2023, Section 3): sqrt(a) y + s std(y) sqrt(1 - a) noise, rescaled.

    a falls from 1 at the share of the time tau_1 = `cads_tau[0]` to 0 at tau_2. A share psi = `cads_mix` of the
    result is brought back to the mean and deviation of y. Both are taken over a sample's valid positions. The paper's
    s has no std(y), as its conditions have unit deviation; T5's states do not.
    """
    low, high = sample.cads_tau
    share = (times + 1) / diffusion.num_steps
    a = jnp.where(share <= low, 1.0, jnp.clip((high - share) / max(high - low, 1e-6), 0, 1))
    seen = mask[:, :, None]
    y = states.astype(jnp.float32)
    mean, std = _moments(y, seen)
    a = expand(a, y)
    noisy = jnp.sqrt(a) * y + sample.cads_noise * std * jnp.sqrt(1 - a) * noise
    noisy_mean, noisy_std = _moments(noisy, seen)
    rescaled = (noisy - noisy_mean) / jnp.maximum(noisy_std, 1e-6) * std + mean
    mixed = sample.cads_mix * rescaled + (1 - sample.cads_mix) * noisy
    return jnp.where(seen, mixed.astype(states.dtype), states)


def _moments(states, seen):
    """Mean and deviation over a sample's valid positions, (B, 1, 1) each; 0 where there is none."""
    count = jnp.maximum(seen.sum((1, 2), keepdims=True) * states.shape[2], 1)
    mean = (states * seen).sum((1, 2), keepdims=True) / count
    return mean, jnp.sqrt((((states - mean) * seen) ** 2).sum((1, 2), keepdims=True) / count)


def condition_annealed(rule: Callable, read: Callable, seen: tuple, keys: Key[Array, "b"], diffusion, sample):
    """CADS around any rule: every network run sees the condition under fresh noise.

    `rule` is condition -> rule with memory; `read` is (states, mask, states, mask, ...) -> condition, and `seen` what
    it takes, each pair noised by itself. `keys` are the sampler's, which uses them folded with 0..N+1; this folds
    N+2 and on.
    """
    pairs = list(zip(seen[::2], seen[1::2], strict=True))

    def guided(images, times, memory):
        folded = jax.vmap(jax.random.fold_in)(keys, times + diffusion.num_steps + 2)
        draws = per_sample_normal(folded, tuple(states.shape[1:] for states, _ in pairs))
        noisy = ()
        for (states, mask), noise in zip(pairs, draws, strict=True):
            noisy += (annealed(states, mask, noise, times, diffusion, sample), mask)
        return rule(read(*noisy))(images, times, memory)

    return guided


def start_memory(sample: Sample, batch: int, shapes: tuple[tuple[int, ...], ...]):
    """The memory with which the config's rule starts: APG's last updates, none for others."""
    return [jnp.zeros((batch, *shape)) for shape in shapes] if sample.guidance == "apg" else ()


def guided_rule(
    sample: Sample,
    diffusion: Diffusion,
    scales: tuple[int, ...],
    gamma: Weight | None,
    denoise: Denoise,
    unconditional,
    bad: Callable | None,
):
    """condition -> the rule with memory that `sample.guidance` and `guidance_interval` name.

    gamma None is no guidance. `bad` is autoguidance's rule of the worse model, None for the others.
    """

    def rule(condition):
        plain = no_guidance(denoise, condition)
        if gamma is None:
            return with_memory(plain)
        if sample.guidance == "autoguidance":
            guided = with_memory(autoguidance(plain, bad, gamma))
        elif sample.guidance == "apg":
            pair = in_one_batch(denoise, condition, unconditional)
            guided = projected(pair, gamma, diffusion, sample, scales)
        else:
            guided = with_memory(classifier_free(denoise, condition, unconditional, gamma))
        if not sample.guidance_interval:
            return guided
        return within(sample.guidance_interval, diffusion, guided, with_memory(plain))

    return rule
