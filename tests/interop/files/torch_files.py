"""Files as torch.save writes them, made without torch: a zip with a pickle (opcodes by hand) and raw storages."""

import struct
import zipfile

import numpy as np

STORAGES = {"float32": "Float", "float16": "Half", "bfloat16": "BFloat16", "float64": "Double", "int64": "Long"}
STORAGES |= {"int32": "Int", "int16": "Short", "int8": "Char", "uint8": "Byte", "bool": "Bool"}


class Raw(bytes):
    """Opcodes that leave one value on the stack."""


def call(module, name, *arguments):
    """A call of module.name, as any class's __reduce__ can ask for it."""
    return Raw(f"c{module}\n{name}\n".encode() + program(arguments) + b"R")


def program(value, storages=None):
    """Opcodes of a value; arrays become tensors whose bytes are added to `storages`."""
    if isinstance(value, Raw):
        return bytes(value)
    if isinstance(value, np.ndarray):
        return tensor(value, storages)
    if isinstance(value, dict):
        return b"}(" + b"".join(program(x, storages) for item in value.items() for x in item) + b"u"
    if isinstance(value, tuple):
        return b"(" + b"".join(program(x, storages) for x in value) + b"t"
    if isinstance(value, str):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    if isinstance(value, bool | None):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    return b"\x8a\x08" + struct.pack("<q", value)


def tensor(array, storages, *, shape=None, strides=None, offset=0, kind=None, count=None, view=b""):
    """Opcodes of a tensor over the array's own memory order; what is not given is the truth."""
    key = str(len(storages))
    storages[key] = array.tobytes()
    strides = [s // array.itemsize for s in np.empty(array.shape, array.dtype).strides] if strides is None else strides
    kind = kind or STORAGES[array.dtype.name] + "Storage"
    count = array.size if count is None else count
    storage = b"(" + program("storage") + f"ctorch\n{kind}\n".encode()
    storage += program(key) + program("cpu") + program(count) + view + b"tQ"
    shape = array.shape if shape is None else shape
    rest = (
        program(offset) + program(tuple(shape)) + program(tuple(strides)) + b"\x89" + b"ccollections\nOrderedDict\n)R"
    )
    return Raw(b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"tR")


def write(path, value, storages=None, folder="archive", compression=zipfile.ZIP_STORED, **entries):
    """Writes a value as torch.save would; `value` may be Raw opcodes over `storages`."""
    storages = {} if storages is None else storages
    code = b"\x80\x02" + program(value, storages) + b"."
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr(f"{folder}/data.pkl", code)
        for name, content in entries.items():
            file.writestr(f"{folder}/{name}", content)
        for key, content in storages.items():
            file.writestr(f"{folder}/data/{key}", content)
        file.writestr(f"{folder}/version", "3\n")
    return path


def write_legacy(path, state, *, view=b"N", magic=0x1950A86A20F9469CFC6C, little=True, keys=None, extra=b""):
    """Writes tensors as torch.save did before torch 1.6: five pickles, then the storages."""
    storages = {}
    items = b"".join(
        program(name) + (tensor(value, storages, view=view) if isinstance(value, np.ndarray) else program(value))
        for name, value in state.items()
    )
    listed = b"".join(map(program, storages)) if keys is None else b"".join(map(program, keys))
    pickles = (
        b"\x8a\x0a" + magic.to_bytes(10, "little"),
        b"M" + struct.pack("<H", 1001),
        program({"protocol_version": 1001, "little_endian": little}),
        b"ccollections\nOrderedDict\n)R(" + items + b"u}" + program("_metadata") + b"Nsb",
        b"](" + listed + b"e",
    )
    sizes = [array.size for array in state.values() if isinstance(array, np.ndarray)]
    raw = b"".join(struct.pack("<q", n) + content for n, content in zip(sizes, storages.values(), strict=True))
    path.write_bytes(b"".join(b"\x80\x02" + code + b"." for code in pickles) + raw + extra)
    return path
