import os
from pathlib import Path

import numpy as np
import pytest

from kaleido_jax.annotate.vision.detector import STRIDES, decode, letterbox, open_detector, pick
from kaleido_jax.annotate.vision.onnx_model import open_onnx
from kaleido_jax.config.schema import Annotate, AnnotateBbox
from kaleido_jax.data.sources.base import Example
from kaleido_jax.errors import UserError
from kaleido_jax.latents.segments.bbox import Box
from kaleido_jax.latents.types import Latents
from tests.annotate.vision import onnx_files

WEIGHTS = Path(os.environ.get("KALEIDO_ONNX_WEIGHTS", "/nowhere"))
SIDE = 64
CELLS = [(stride, x, y) for stride in STRIDES for y in range(SIDE // stride) for x in range(SIDE // stride)]


def raw_output(found, num_classes=3):
    """The output in which only `found` {cell: (x1, y1, x2, y2 in px of the input, objectness, scores)} is there."""
    out = np.zeros((len(CELLS), 5 + num_classes), np.float32)
    for cell, (x1, y1, x2, y2, objectness, *scores) in found.items():
        stride, column, row = CELLS[cell]
        center = (x1 + x2) / 2 / stride - column, (y1 + y2) / 2 / stride - row
        out[cell] = (*center, np.log((x2 - x1) / stride), np.log((y2 - y1) / stride), objectness, *scores)
    return out


def opened(path, **settings):
    return open_detector(Annotate(bbox=AnnotateBbox(kind="onnx", model=str(path), **settings)))


def example(height, width):
    return Example(id="x", image=np.zeros((height, width, 3), np.uint8), caption="")


@pytest.mark.parametrize("cell", [0, 9, 63, 64, 79, 80, 83])
def test_decoding_gives_the_box_that_was_encoded_in_any_cell_of_any_stride(cell):
    out = decode(raw_output({cell: (5.0, 9.0, 33.0, 29.0, 0.5, 0.1, 0.9, 0.2)}), SIDE, SIDE)
    np.testing.assert_allclose(out[cell, :4], (19, 19, 28, 20), rtol=1e-5)
    found = pick(out, 1.0, (SIDE, SIDE), 0.4)
    np.testing.assert_allclose(found.boxes, [(5, 9, 33, 29)], rtol=1e-5)
    assert found.classes.tolist() == [1] and found.scores == pytest.approx([0.45])


def test_cells_are_those_of_the_published_exporter():
    # 416 px: 52 * 52 + 26 * 26 + 13 * 13; the grid counts columns first.
    out = decode(np.zeros((3549, 6), np.float32), 416, 416)
    np.testing.assert_array_equal(out[[1, 52, 2704, 3548], :2], [(8, 0), (0, 8), (0, 0), (384, 384)])
    np.testing.assert_array_equal(out[[0, 2704, 3548], 2], [8, 16, 32])


def test_doubles_of_a_class_go_and_those_of_another_class_stay():
    boxes = {
        0: (0, 0, 40, 40, 1.0, 0.9, 0, 0),
        1: (2, 0, 42, 40, 1.0, 0.8, 0, 0),  # overlaps the first by 0.9
        2: (2, 0, 42, 40, 1.0, 0, 0.7, 0),  # the same place, another class
        3: (20, 0, 60, 40, 1.0, 0.6, 0, 0),  # overlaps by a third only
        4: (0, 0, 40, 40, 1.0, 0.2, 0, 0),  # too unsure
    }
    found = pick(decode(raw_output(boxes), SIDE, SIDE), 1.0, (SIDE, SIDE), 0.3)
    assert found.scores == pytest.approx([0.9, 0.7, 0.6]) and found.classes.tolist() == [0, 1, 0]


def test_input_is_bgr_in_the_upper_left_of_grey():
    image = np.zeros((20, 40, 3), np.uint8)
    image[..., 0], image[..., 2] = 200, 30
    pixels, scale = letterbox(image, SIDE, SIDE)
    assert pixels.shape == (3, SIDE, SIDE) and pixels.dtype == np.float32 and scale == 1.6
    np.testing.assert_array_equal(pixels[:, 31, 63], (30, 0, 200))
    np.testing.assert_array_equal(pixels[:, 32:], 114)


def test_annotator_gives_thousandths_of_the_image_and_an_empty_tuple_for_nothing(tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "tiny.names").write_text("cat\nhot dog\nman (tall)\n")
    boxes = {70: (16, 8, 48, 40, 1.0, 0, 0.9, 0), 20: (-9, 32, 32, 70, 0.8, 0, 0, 0.5)}
    path = onnx_files.detector(tmp_path / "tiny.onnx", raw_output(boxes))
    detector = opened(path)
    # 32 px wide: the model saw it at twice the size, so its 16 are 8 of 32, a quarter.
    [z] = detector([example(32, 32)], [Latents()])
    assert z.bbox == (
        Box(phrase="hot dog", box=(250, 125, 750, 625)),
        Box(phrase="man tall", box=(0, 500, 500, 1000)),
    )
    assert [len(z.bbox) for z in opened(path, max_boxes=1)([example(32, 32)], [Latents()])] == [1]
    [none] = opened(path, threshold=0.95)([example(32, 32)], [Latents()])
    assert none.bbox == () and none.text is None
    assert detector.segments == ("bbox",) and detector.metadata["version"] == open_onnx(path, side_px=1).fingerprint


def test_files_that_do_not_fit_are_refused(tmp_path):
    pytest.importorskip("onnxruntime")
    path = onnx_files.detector(tmp_path / "tiny.onnx", raw_output({}))
    with pytest.raises(UserError, match="0 .names files"):
        opened(path)
    (tmp_path / "other.names").write_text("cat\ndog\n")
    with pytest.raises(UserError, match=r"gives \(1, 84, 8\); expected \(1, 84, 7\)"):
        opened(path)
    (tmp_path / "other.names").write_text("cat\n\ndog\n")
    with pytest.raises(UserError, match="other.names with nothing in line 2"):
        opened(path)
    with pytest.raises(UserError, match="no file"):
        opened(tmp_path / "absent.onnx")
    whole = path.read_bytes()
    for content, reason in (
        (b"\n <!DOCTYPE html>", "is a web page; .*download the raw file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "is a git-LFS pointer; .*git lfs pull"),
        (whole[: len(whole) // 2], "not a model that runs"),
        (b"", "not a model that runs"),
    ):
        (tmp_path / "bad.onnx").write_bytes(content)
        with pytest.raises(UserError, match=reason) as error:
            opened(tmp_path / "bad.onnx")
        assert "\n" not in str(error.value)
    odd = onnx_files.brightness_mask(tmp_path / "odd.onnx", side=40)
    with pytest.raises(UserError, match="40x40"):
        opened(odd)
    with pytest.raises(UserError, match="bbox.model is not set"):
        open_detector(Annotate())


@pytest.mark.skipif(not (WEIGHTS / "yolox_nano_coco80.onnx").exists(), reason="KALEIDO_ONNX_WEIGHTS has no YOLOX-Nano")
def test_public_weights_open():
    pytest.importorskip("onnxruntime")
    detector = opened(WEIGHTS / "yolox_nano_coco80.onnx")
    assert len(detector.class_names) == 80 and detector.model.height == 416
    assert detector([example(100, 100)], [Latents()])[0].bbox == ()
