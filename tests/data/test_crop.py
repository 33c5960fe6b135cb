import io
import random
import struct
import warnings

import numpy as np
import pytest
from PIL import Image

from kaleido_jax.data.crop import (
    boxes_to_crop,
    crop_image,
    crop_mask,
    cut_boxes,
    square_crop,
)
from kaleido_jax.data.images import PHOTO_FORMATS, decode_photo
from kaleido_jax.data.sources.base import Example, LabeledObject
from kaleido_jax.errors import UserError


def encoded(image, format, **settings):
    file = io.BytesIO()
    image.save(file, format, **settings)
    return file.getvalue()


def quadrants(width=40, height=24):
    """Red, green / blue, white: the place of each tells which way is up."""
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2, : width // 2] = (255, 0, 0)
    image[: height // 2, width // 2 :] = (0, 255, 0)
    image[height // 2 :, : width // 2] = (0, 0, 255)
    image[height // 2 :, width // 2 :] = 255
    return image


# ------------------------------------------------------------------------------------------------ decoding
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_photo_upright(orientation):
    upright = Image.fromarray(quadrants())
    # How the camera stores it, by where Exif says that its first row and column are seen: top left, top right, ...
    turn = Image.Transpose
    ways = [None, turn.FLIP_LEFT_RIGHT, turn.ROTATE_180, turn.FLIP_TOP_BOTTOM]
    ways += [turn.TRANSPOSE, turn.ROTATE_90, turn.TRANSVERSE, turn.ROTATE_270]
    stored = upright if orientation == 1 else upright.transpose(ways[orientation - 1])
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(decode_photo(encoded(stored, "PNG", exif=exif)), quadrants())


@pytest.mark.parametrize(
    "tag", [struct.pack("<HHI4s", 0x100, 2, 2, b"a\0\0\0"), struct.pack("<HHIi", 0x100, 9, 1, -5)], ids=["text", "sign"]
)
def test_an_exif_tag_of_the_wrong_type_costs_no_photo(tag):
    turned = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + tag + struct.pack("<HHII", 0x112, 3, 1, 6) + bytes(4)
    stored = Image.fromarray(quadrants()).transpose(Image.Transpose.ROTATE_90)
    np.testing.assert_array_equal(decode_photo(encoded(stored, "PNG", exif=turned)), quadrants())


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "1", "CMYK"])
def test_every_mode_becomes_rgb(mode):
    image = Image.fromarray(quadrants()).convert(mode)
    decoded = decode_photo(encoded(image, "TIFF" if mode == "CMYK" else "PNG"))
    assert decoded.dtype == np.uint8 and decoded.shape == (24, 40, 3)
    expected = quadrants() if mode in ("RGB", "RGBA", "P", "CMYK") else np.asarray(image.convert("L").convert("RGB"))
    np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_greys_keep_their_upper_byte(format):
    grey = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    np.testing.assert_array_equal(decode_photo(encoded(Image.fromarray(grey), format))[..., 1], grey >> 8)


def tiff(pixels, width, height, *, bits, photometric, orientation=1):
    """A TIFF of one gray channel as cameras and scanners write it and Pillow does not."""
    values = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 274: orientation, 277: 1}
    values |= {278: height, 279: len(pixels)}
    tags = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, v) for tag, v in values.items())
    directory = struct.pack("<H", len(values)) + tags + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory


@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (1, 3))])
def test_12_bit_greys_of_a_tiff_are_as_bright_as_they_are(orientation, corner):
    grey = np.full((2, 4), 4095)
    grey[0, 0] = 2048
    pairs = grey.reshape(-1, 2)  # three bytes each
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], axis=1)
    data = tiff(packed.astype(np.uint8).tobytes(), 4, 2, bits=12, photometric=1, orientation=orientation)
    decoded = decode_photo(data)[..., 0]
    assert decoded[corner] == 128 and (decoded == 255).sum() == 7


@pytest.mark.parametrize("orientation", [1, 3])
@pytest.mark.parametrize(("bits", "kind"), [(8, "u1"), (16, "<u2")])
@pytest.mark.parametrize("photometric", [0, 1])
def test_a_tiff_says_whether_its_white_is_zero(bits, kind, photometric, orientation):
    most = 2**bits - 1
    grey = np.full((2, 4), most, kind)
    grey[0, 0] = most // 4
    data = tiff(grey.tobytes(), 4, 2, bits=bits, photometric=photometric, orientation=orientation)
    decoded = decode_photo(data)[:: 1 if orientation == 1 else -1, :: 1 if orientation == 1 else -1, 1]
    expected = np.full((2, 4), 255)
    expected[0, 0] = 63
    np.testing.assert_array_equal(decoded, expected if photometric else 255 - expected)


@pytest.mark.parametrize("most", [255, 65535])
def test_greys_of_a_wide_type_are_of_as_many_bits_as_their_values(most):
    grey = np.linspace(0, most, 1024).astype(np.int32).reshape(32, 32)
    expected = grey if most == 255 else grey >> 8
    np.testing.assert_array_equal(decode_photo(encoded(Image.fromarray(grey), "TIFF"))[..., 1], expected)
    dark = b"P5 32 32 65535\n" + np.full((32, 32), most // 257, ">u2").tobytes()  # its header tells the white
    assert (decode_photo(dark) == most // 257 >> 8).all()


@pytest.mark.parametrize("value", [-1, 65536])
def test_numbers_whose_white_is_unknown_are_refused(value):
    with pytest.raises(UserError, match="an image of wide integers, .*; expected 8 or 16 bits a channel"):
        decode_photo(encoded(Image.fromarray(np.array([[9, value]], np.int32)), "TIFF"))


def test_transparent_parts_show_white():
    image = np.dstack([quadrants(), np.full((24, 40), 255, np.uint8)])
    image[:12, :20, 3] = 0
    image[:12, 20:, 3] = 128
    decoded = decode_photo(encoded(Image.fromarray(image), "PNG"))
    assert (decoded[0, 0] == 255).all() and (decoded[-1, 0] == (0, 0, 255)).all()
    assert abs(int(decoded[0, -1, 0]) - 127) <= 1 and decoded[0, -1, 1] == 255


def test_jpeg_is_near_the_original():
    decoded = decode_photo(encoded(Image.fromarray(quadrants(64, 64)), "JPEG", quality=95))
    assert np.abs(decoded.astype(int) - quadrants(64, 64)).mean() < 4  # of 255; edges ring


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an image"),
        (b"<!DOCTYPE html><html>Sign in</html>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),  # would start another program
        (encoded(Image.fromarray(quadrants()), "JPEG")[:300], "cannot be decoded"),
        (encoded(Image.fromarray(quadrants()), "PNG")[:-40], "cannot be decoded"),
        (encoded(Image.fromarray(np.zeros((2, 2), np.float32)), "TIFF"), "image of floats"),
        (encoded(Image.new("1", (8193, 8193)), "PNG"), "8193 x 8193 px; expected at most 67108864 px"),
        (encoded(Image.new("1", (20000, 20000)), "PNG"), "beyond Pillow's own limit; expected at most"),
    ],
)
def test_what_is_no_photo_is_reported_in_one_line(data, message):
    with warnings.catch_warnings(), pytest.raises(UserError, match=message) as error:
        warnings.simplefilter("ignore")
        decode_photo(data)
    assert "\n" not in str(error.value)


def test_harmed_files_are_refused_or_decoded():
    harm, rng = random.Random(0), np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (24, 31, 3), dtype=np.uint8))
    Image.init()
    files = [encoded(image, format) for format in PHOTO_FORMATS if format in Image.SAVE]
    refused = 0
    for i in range(1500):
        data = bytearray(files[i % len(files)])
        for _ in range(harm.randrange(1, 6)):
            data[harm.randrange(len(data) if i % 2 else min(100, len(data)))] = harm.randrange(256)
        data = data[: harm.randrange(1, len(data))] if i % 3 == 0 else data
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                decoded = decode_photo(bytes(data))
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            assert decoded.dtype == np.uint8 and decoded.ndim == 3 and decoded.shape[2] == 3 and decoded.size
    assert 200 < refused < 1400  # both ways were taken


# ------------------------------------------------------------------------------------------------ geometry
@pytest.mark.parametrize("size", [(640, 480), (480, 641), (100, 100)])
def test_boxes_go_to_the_crop(size):
    width, height = size
    side = min(size)
    window = [(width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2]
    np.testing.assert_allclose(boxes_to_crop(np.array(window), size), [0, 0, 1000, 1000], atol=1e-12)
    middle = [width / 2, height / 2, width / 2 + side / 4, height / 2 + side / 4]
    np.testing.assert_allclose(boxes_to_crop(np.array(middle), size), [500, 500, 750, 750])
    both = boxes_to_crop(np.array([[window, middle]]), size)  # of any leading shape
    np.testing.assert_allclose(both, [[[0, 0, 1000, 1000], [500, 500, 750, 750]]], atol=1e-12)


def test_cut_boxes_keep_their_share_of_area():
    boxes = [[100, 100, 200, 200], [-100, 0, 300, 1000], [900, 900, 1100, 1100], [1100, 0, 1200, 10], [5, 5, 5, 9]]
    cut, share = cut_boxes(np.array(boxes, np.float64))
    np.testing.assert_allclose(share, [1, 0.75, 0.25, 0, 0])
    np.testing.assert_array_equal(cut[1:3], [[0, 0, 300, 1000], [900, 900, 1000, 1000]])


def test_mask_is_averaged_over_the_pixels_it_falls_on():
    mask = np.zeros((8, 12), bool)
    mask[2:4, 2:6] = True  # two pixels in four, at the crop's upper left
    cropped, share = crop_mask(mask, 4)
    assert share == 1
    np.testing.assert_array_equal(np.argwhere(cropped), [[1, 0], [1, 1]])
    np.testing.assert_array_equal(crop_mask(np.eye(6, dtype=bool), 6)[0], np.eye(6))  # the same size: unchanged


def test_mask_keeps_exactly_the_share_inside_the_crop_even_in_mid_pixel():
    mask = np.zeros((4, 7), bool)
    mask[1, :3] = True  # the crop begins at x = 1.5
    cropped, share = crop_mask(mask, 4)
    assert share == pytest.approx(0.5)
    np.testing.assert_array_equal(np.argwhere(cropped), [[1, 0], [1, 1]])


def test_thin_objects_do_not_vanish():
    for size in ((400, 400), (400, 617), (500, 401)):
        for seed in range(20):
            rng = np.random.default_rng(seed)
            mask = np.zeros(size, bool)
            mask[rng.integers(160, 240), rng.integers(160, 240)] = True
            cropped, share = crop_mask(mask, 32)
            assert share == pytest.approx(1) and cropped.sum() == 1
    assert crop_mask(np.zeros((5, 5), bool), 3) == (pytest.approx(np.zeros((3, 3))), 0)


def example(image, *objects):
    return Example(id="photo/1", image=image, caption="a photo", objects=objects)


def test_square_of_the_right_size_is_left_as_it_is():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    found = LabeledObject(phrase="dog", box=(1.0, 2.0, 30.0, 31.5), mask=np.eye(32, dtype=bool))
    cropped = square_crop(example(image, found), 32)
    assert cropped.image is image and cropped.objects[0].box == pytest.approx(found.box)
    np.testing.assert_array_equal(cropped.objects[0].mask, found.mask)


def test_crop_takes_the_middle_and_moves_the_objects_with_it():
    image = np.zeros((60, 100, 3), np.uint8)
    image[15:45, 35:65] = 255  # in the crop from x = 20: the middle half of both sides
    mask = image[..., 0] > 0
    cropped = square_crop(example(image, LabeledObject(phrase="tile", box=(35.0, 15.0, 65.0, 45.0), mask=mask)), 40)
    assert cropped.image.shape == (40, 40, 3) and cropped.caption == "a photo"
    (found,) = cropped.objects
    assert found.box == pytest.approx((10, 10, 30, 30))
    np.testing.assert_array_equal(np.argwhere(found.mask)[[0, -1]], [[10, 10], [29, 29]])
    # Two pixels from the edge the filter's rings are below 3 %.
    assert cropped.image[12:28, 12:28].min() > 247 and cropped.image[:8].max() < 8


def test_shrinking_leaves_no_aliasing():
    stripes = np.zeros((256, 300, 3), np.uint8)
    stripes[:, ::2] = 255  # the finest there are; every eighth pixel alone would be all black or all white
    cropped = square_crop(example(stripes), 32).image
    assert np.abs(cropped[:, 2:-2].astype(int) - 128).max() <= 2


@pytest.mark.parametrize(
    ("found", "stays"),
    [
        (LabeledObject(phrase="named only"), True),
        (LabeledObject(phrase="quarter inside", box=(5.0, 0.0, 25.0, 10.0)), True),
        (LabeledObject(phrase="less than a quarter", box=(5.0, 0.0, 24.9, 10.0)), False),
        (LabeledObject(phrase="outside", box=(0.0, 0.0, 19.0, 10.0)), False),
        (LabeledObject(phrase="without area", box=(50.0, 5.0, 50.0, 10.0)), False),
    ],
)
def test_objects_mostly_outside_are_left_out(found, stays):
    cropped = square_crop(example(np.zeros((60, 100, 3), np.uint8), found), 60)
    assert [o.phrase for o in cropped.objects] == [found.phrase] * stays
    for o in cropped.objects:
        assert o.box is None or o.box == pytest.approx((0, 0, 5, 10))


def test_masks_mostly_outside_are_left_out():
    mask = np.zeros((60, 100), bool)
    mask[0, 15:21] = True
    image = np.zeros((60, 100, 3), np.uint8)
    assert square_crop(example(image, LabeledObject(phrase="a", mask=mask)), 60).objects == ()
    mask[0, 21] = True  # two of seven inside
    assert square_crop(example(image, LabeledObject(phrase="a", mask=mask)), 60).objects[0].mask.sum() == 2


def test_wrong_sizes_are_reported():
    image = np.zeros((6, 8, 3), np.uint8)
    with pytest.raises(UserError, match="a crop of 0 px"):
        square_crop(example(image), 0)
    with pytest.raises(UserError, match="a mask of 6 x 8 px in photo/1; expected 8 x 6"):
        square_crop(example(image, LabeledObject(phrase="a", mask=np.ones((8, 6), bool))), 4)


@pytest.mark.parametrize("shape", [(31, 45), (44, 30), (30, 30)])
def test_a_crop_at_its_own_size_is_that_part_of_the_photo(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    side = min(shape)
    top, left = ((length - side) // 2 for length in shape)
    cut = crop_image(image, side)
    np.testing.assert_array_equal(cut, image[top : top + side, left : left + side])
    box = (left, top, left + side, top + side)
    filtered = Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS, box=box)
    np.testing.assert_array_equal(cut, np.asarray(filtered))
