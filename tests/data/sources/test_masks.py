import numpy as np
import pytest

from kaleido_jax.data.sources.masks import decode_rle, decode_segmentation, decompress, fill_polygons
from kaleido_jax.errors import UserError


def _compress(runs):
    """The inverse of decompress, by its description."""
    out = []
    for index, run in enumerate(runs):
        value = run - (runs[index - 2] if index > 2 else 0)
        more = True
        while more:
            code, value = value & 31, value >> 5
            more = value != (-1 if code & 16 else 0)
            out.append(chr((code | (32 if more else 0)) + 48))
    return "".join(out)


def _runs(mask):
    """Run lengths down the columns, zeros first."""
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat.astype(int), [1 - int(flat[-1])]])))
    return [int(n) for n in np.diff(np.concatenate([[0], edges]))]


@pytest.mark.parametrize("seed", range(4))
def test_run_lengths_plain_and_compressed_give_the_mask_back(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((37, 53)) < (0.02, 0.3, 0.7, 0.98)[seed]
    mask[:, 10:40] |= seed == 3  # a run longer than 5 and 10 bits
    runs = _runs(mask)
    assert decompress(_compress(runs)) == runs
    for counts in (runs, _compress(runs), _compress(runs).encode()):
        np.testing.assert_array_equal(decode_rle({"size": [37, 53], "counts": counts}), mask)


def test_a_string_that_coco_wrote_is_read():
    # Known numbers: five bits a character, the sixth says that more follow, the last character has the sign.
    assert decompress("<") == [12] and decompress("`0") == [16] and decompress("L") == [-4]
    assert decompress("221") == [2, 2, 1] and decompress("2211") == [2, 2, 1, 3]  # the fourth is a difference


def test_polygons_hold_the_pixels_whose_centers_they_hold():
    mask = fill_polygons([[10, 5, 20, 5, 20, 25, 10, 25]], 40, 40)
    expected = np.zeros((40, 40), bool)
    expected[5:25, 10:20] = True
    np.testing.assert_array_equal(mask, expected)
    turn = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    disc = np.stack([30 + 20 * np.cos(turn), 25 + 20 * np.sin(turn)], axis=-1)
    rows, columns = np.mgrid[:50, :60] + 0.5
    inside = np.hypot(columns - 30, rows - 25) < 20
    assert np.count_nonzero(fill_polygons([disc.ravel().tolist()], 50, 60) ^ inside) <= 8  # of 1256, on the rim


def test_polygons_are_joined_and_cut_at_the_border():
    one, two = [-5, -5, 4, -5, 4, 4, -5, 4], [2, 2, 90, 2, 90, 90, 2, 90]
    both = fill_polygons([one, two], 10, 8)
    assert both.sum() == 16 + 8 * 6 - 4 and both[3, 3]
    assert not fill_polygons([[-9, 1, -2, 1, -2, 5]], 10, 8).any()


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [10, 8], "counts": [5, 5]},
        {"size": [10, 8], "counts": [-1, 81]},
        {"size": [10, 8], "counts": "\x7f"},
        {"size": [10, 8], "counts": "P"},
        {"size": [8, 10], "counts": [80]},
        {"counts": [80]},
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5]],
        [["a", 2, 3, 4, 5, 6]],
        [[1, 2, 3, float("nan"), 5, 6]],
    ],
)
def test_bad_segmentations_are_one_line(segmentation):
    with pytest.raises(UserError) as error:
        decode_segmentation(segmentation, 10, 8)
    assert "\n" not in str(error.value)
