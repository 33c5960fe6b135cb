"""Inputs of the golden numbers in tests/golden/evaluate, the same for the programs that made them and for ours."""

import numpy as np

RESIZES = ((13, 19), (31, 11), (16, 16))  # sides before and after
SETS = ("gaussian", "shifted", "clusters")
NEAREST = 3


def random_tensors(shapes, seed=0):
    """Weights under torch's names that keep activations of order one; float32."""
    rng, tensors = np.random.default_rng(seed), {}
    for name, shape in sorted(shapes.items()):
        if name.endswith("running_var"):
            tensors[name] = rng.uniform(0.5, 1.5, shape)
        elif len(shape) > 1:
            tensors[name] = rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))
        else:
            scale = ".weight" in name
            tensors[name] = scale + 0.1 * rng.normal(size=shape)
    return {name: array.astype(np.float32) for name, array in tensors.items()}


def images(number, height, width, seed=1):
    """uint8, smooth with some noise, as photographs are."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = rng.normal(size=(number, 3, 4, 4)) * 6
    light = sum(
        np.sin(waves[..., i, 0, None, None] * y + waves[..., i, 1, None, None] * x + waves[..., i, 2, None, None])
        for i in range(4)
    )
    noisy = 128 + 35 * light + rng.normal(size=light.shape) * 10
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


def features(name, seed=2):
    """(real, fake) features, float32; of each set another number of rows."""
    rng = np.random.default_rng([seed, SETS.index(name)])
    real, fake = rng.normal(size=(220, 24)), rng.normal(size=(180, 24))
    if name == "shifted":
        # Far from zero and not centered, where |a|^2 + |b|^2 - 2ab loses most digits.
        real, fake = real + 300, 1.3 * fake + 300.2
    if name == "clusters":
        centers = 4 * rng.normal(size=(8, 24))
        real, fake = 0.4 * real + centers[np.arange(220) % 8], 0.3 * fake + centers[np.arange(180) % 4]
    return real.astype(np.float32), fake.astype(np.float32)
