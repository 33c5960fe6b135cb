"""Array types: a name for each shape in function signatures; the tests check them at run time.

Axes: b batch, t tokens, d width of the states, v vocabulary, h and w pixels, n anything counted.
"""

from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, UInt8

Rows = Any  # how many samples: an int, or a symbol in a program that is exported for any number of them

# On the device
Sample = Float[Array, "b ..."]  # images (b, h, w, 3) of one resolution in the model range, or points (b, dim)
# One Sample per resolution, high to low. In mixed batches the outer ones have fewer rows, so the batch axis is not
# named: the checker tries one element of a list and would bind it.
Pyramid = list[Float[Array, "_ ..."]]
Times = Int[Array, "b"]  # network times 0..N-1 of the discrete schedule
AlphaBar = Float[Array, "b"]  # signal level alpha_bar of each sample, 0..1
AlphaBars = list[Float[Array, "_"]]  # one AlphaBar per resolution, with the rows of its Pyramid
PerSample = Float[Array, "b"]  # one number per sample
Scalar = Float[Array, ""]
Shapes = tuple[tuple[int, ...], ...]  # of one sample at each resolution, high to low, without the batch axis
Scales = tuple[int, ...]  # of each resolution relative to the innermost, e.g. (4, 1)
Keys = Key[Array, "b"]  # one random key per sample
Tokens = Int[Array, "b t"]
PerToken = Float[Array, "b t"]  # one number per token, e.g. its weight in a loss
Mask = Bool[Array, "b t"]  # True = a valid position
States = Float[Array, "b t d"]  # of T5, H_c or H_z
Condition = PyTree[Array]  # what a denoiser reads at every step, made once from the states of c and z
Logits = Float[Array, "b t v"]
TokenLogits = Float[Array, "b v"]  # of one position
Features = Float[Array, "b h w c"]
PerChannel = Float[Array, "b c"]  # one number per sample and channel
PerHead = Float[Array, "b n t d_n"]  # queries, keys or values; n heads, each of width d_n
AttentionBias = Float[Array, "#b #n #q k"]  # added to the logits of queries and keys
AttentionMask = Bool[Array, "#b #n #q k"]  # True where a query may attend to a key
Batch = dict[str, Array]  # of training, under the names of t5x, with "image" and "sample_id"

# On the host
Image = UInt8[np.ndarray, "h w 3"]
SquareImage = UInt8[np.ndarray, "s s 3"]
Images = UInt8[np.ndarray, "n h w 3"]
ImageMask = Bool[np.ndarray, "h w"]
Boxes = Float[np.ndarray, "*n 4"]  # (x1, y1, x2, y2)
HostTokens = Int[np.ndarray, "b t"]
