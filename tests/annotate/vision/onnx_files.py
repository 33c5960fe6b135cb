"""Small ONNX models written by hand: the file is a protocol buffer of a few messages, so no package is needed."""

import struct

import numpy as np

_FLOAT, _INT64 = 1, 7  # TensorProto.DataType
_KINDS = {np.dtype(np.float32): _FLOAT, np.dtype(np.int64): _INT64}


def _varint(number):
    number &= 2**64 - 1
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes(out + bytes([number]))


def _message(*fields):
    """(number, value) pairs; ints as varints, bytes and strings with their length, floats as four bytes."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += _varint(number << 3) + _varint(value)
        elif isinstance(value, float):
            out += _varint(number << 3 | 5) + struct.pack("<f", value)
        else:
            value = value.encode() if isinstance(value, str) else value
            out += _varint(number << 3 | 2) + _varint(len(value)) + value
    return out


def node(op, inputs, outputs, **attributes):
    """One operation; attributes are ints or lists of ints."""
    fields = [(1, name) for name in inputs] + [(2, name) for name in outputs] + [(4, op)]
    for name, value in attributes.items():
        many = isinstance(value, list)
        values = [(8, v) for v in value] + [(20, 7)] if many else [(3, value), (20, 2)]
        fields.append((5, _message((1, name), *values)))
    return _message(*fields)


def _tensor(name, array):
    return _message(*((1, n) for n in array.shape), (2, _KINDS[array.dtype]), (8, name), (9, array.tobytes()))


def _value(name, shape, kind=_FLOAT):
    # A dimension that is no number is left open, under that name.
    dims = [(1, _message((1, n) if isinstance(n, int) else (2, n))) for n in shape]
    return _message((1, name), (2, _message((1, _message((1, kind), (2, _message(*dims)))))))


def write(path, nodes, *, inputs, outputs, constants, integers=()):
    """Writes a model: nodes in order, {name: shape} of inputs and outputs, {name: array} of constants; the inputs in
    `integers` are int64, the others float32.
    """
    graph = _message(
        *((1, n) for n in nodes),
        (2, "graph"),
        *((5, _tensor(name, array)) for name, array in constants.items()),
        *((11, _value(name, shape, _INT64 if name in integers else _FLOAT)) for name, shape in inputs.items()),
        *((12, _value(name, shape)) for name, shape in outputs.items()),
    )
    path.write_bytes(_message((1, 8), (7, graph), (8, _message((1, ""), (2, 13)))))
    return path


def detector(path, raw):
    """A model of a YOLOX's shapes that answers `raw` (cells, 5 + classes) + 0 times the mean of its 64x64 input."""
    nodes = [
        node("ReduceMean", ["images"], ["mean"], axes=[1, 2, 3], keepdims=0),
        node("Mul", ["mean", "zero"], ["nothing"]),
        node("Add", ["nothing", "raw"], ["output"]),
    ]
    constants = {"zero": np.zeros(1, np.float32), "raw": np.asarray(raw, np.float32)[None]}
    shapes = {"inputs": {"images": (1, 3, 64, 64)}, "outputs": {"output": (1, *np.shape(raw))}}
    return write(path, nodes, constants=constants, **shapes)


def brightness_mask(path, side=32, scale=1.0):
    """A mask model: sigmoid(20 * scale * (mean of the three normalized channels))."""
    weight = np.full((1, 3, 1, 1), 20 * scale / 3, np.float32)
    nodes = [node("Conv", ["image", "weight"], ["soft"]), node("Sigmoid", ["soft"], ["mask"])]
    shapes = {"inputs": {"image": (1, 3, side, side)}, "outputs": {"mask": (1, 1, side, side)}}
    return write(path, nodes, constants={"weight": weight}, **shapes)


def features(path, weight, stride, sides=("h", "w")):
    """A vision model: one convolution with `weight` (c, 3, k, k), a map of c channels."""
    nodes = [node("Conv", ["image", "weight"], ["map"], strides=[stride, stride])]
    shapes = {"inputs": {"image": ("n", 3, *sides)}, "outputs": {"map": ("n", len(weight), "a", "b")}}
    return write(path, nodes, constants={"weight": np.asarray(weight, np.float32)}, **shapes)


def text_encoder(path, table):
    """CLIP's text encoder in shape: the mean of the rows of `table` at the tokens; its second output."""
    nodes = [
        node("Gather", ["table", "input_ids"], ["last_hidden_state"]),
        node("ReduceMean", ["last_hidden_state"], ["text_embeds"], axes=[1], keepdims=0),
    ]
    width = np.shape(table)[1]
    shapes = {
        "inputs": {"input_ids": ("n", "t")},
        "outputs": {"last_hidden_state": ("n", "t", width), "text_embeds": ("n", width)},
    }
    return write(path, nodes, constants={"table": np.asarray(table, np.float32)}, integers=("input_ids",), **shapes)


def pooled_features(path, weight, side=32):
    """CLIP's image encoder in shape: the means over the map of one convolution with a stride of its size."""
    stride = np.shape(weight)[-1]
    nodes = [
        node("Conv", ["pixel_values", "weight"], ["map"], strides=[stride, stride]),
        node("ReduceMean", ["map"], ["image_embeds"], axes=[2, 3], keepdims=0),
    ]
    shapes = {
        "inputs": {"pixel_values": ("n", 3, side, side)},
        "outputs": {"map": ("n", len(weight), "a", "b"), "image_embeds": ("n", len(weight))},
    }
    return write(path, nodes, constants={"weight": np.asarray(weight, np.float32)}, **shapes)
