"""Post-hoc EMA: averages of the parameters with a power function as their profile, and any other one made of them.

Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models", section 3 and appendix C. An
average at step T weighs the parameters of step t <= T by p(t) = (gamma + 1) / T * (t / T)**gamma. Its width relative to
T, the standard deviation sigma_rel of t / T under p, names it. A run keeps two of them and writes snapshots; a sum of
snapshots then has nearly the profile of any other sigma_rel, which nobody had to choose while it trained.

Nothing here imports JAX; the averages move in train/state.py.
"""

import numpy as np
from jaxtyping import Float, Int

from kaleido_jax.errors import user_error

MAX_SIGMA_REL = 0.2886  # just below 1 / sqrt(12), that of gamma = 0, the plain mean over all steps


def gamma_of(sigma_rel: float) -> float:
    """The exponent of the profile whose relative width is `sigma_rel` (section 3.1), the larger the narrower.

    sigma_rel**2 = (gamma + 1) / ((gamma + 2)**2 * (gamma + 3)), a Beta distribution's variance; gamma is the largest
    root of that as a cubic.

    Raises:
      UserError: it is not between 0 and MAX_SIGMA_REL.
    """
    if not 0 < sigma_rel < MAX_SIGMA_REL:
        raise user_error(
            f"sigma_rel = {sigma_rel:g}", f"a number between 0 and {MAX_SIGMA_REL}", "use e.g. 0.05 to 0.15"
        )
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def coefficients(
    times: Int[np.ndarray, "n"], sigma_rels: Float[np.ndarray, "n"], time: int, sigma_rel: float
) -> tuple[Float[np.ndarray, "n"], float]:
    """The factors by which snapshots sum up to the average of another profile, by least squares (algorithm 3).

    Unlike the paper's they sum to 1, so that parameters which do not change come out as they are. With hundreds of
    snapshots that makes no difference; with four of two profiles, 0.05 and 0.1, all weights would otherwise be 1 % off
    between these, and shrink by a fifth at 0.25.

    Args:
      times: steps of the snapshots, at most `time`; no two entries have the same step and width.
      sigma_rels: the widths of their profiles.
      time: the step of the average.
      sigma_rel: its width.

    Returns:
      (factors, the L2 distance of the profile that they give from the wanted one, relative to that one's norm).

    Raises:
      UserError: `sigma_rel` is out of range.
    """
    t, gammas = times / time, np.asarray([gamma_of(width) for width in sigma_rels])
    gamma = gamma_of(sigma_rel)
    among = _product(t[:, None], gammas[:, None], t[None], gammas[None])
    wanted, norm = _product(t, gammas, np.float64(1), gamma), _product(np.float64(1), gamma, np.float64(1), gamma)
    free, ones = np.linalg.solve(among, np.stack([wanted, np.ones(len(t))], axis=1)).T
    factors = free + ones * (1 - free.sum()) / ones.sum()
    distance = norm - 2 * factors @ wanted + factors @ among @ factors
    return factors, float(np.sqrt(max(distance, 0) / norm))


def _product(
    t_a: np.ndarray | np.float64, gamma_a: np.ndarray | float, t_b: np.ndarray | np.float64, gamma_b: np.ndarray | float
) -> np.ndarray | np.float64:
    """The integral of the product of two profiles, those of gamma_a at step t_a and of gamma_b at t_b, over all t."""
    first = np.minimum(t_a, t_b)
    rise = (first / t_a) ** gamma_a * (first / t_b) ** gamma_b
    return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * rise * first / (t_a * t_b)
