"""Fuzz targets: what reads bytes that a person, a network or a broken disk gives.

Each target turns any bytes into a value or one UserError; anything else that it raises is a bug. `TARGETS` has a
function for each that makes its seeds and what reads them, with a folder to write into.
"""

import asyncio
import dataclasses
import functools
import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import msgpack
import numpy as np
from flax import serialization
from PIL import Image
from safetensors.numpy import save

from kaleido_jax.config import load
from kaleido_jax.config.checks import validate
from kaleido_jax.config.load import MODELS, config_from_flags, load_values
from kaleido_jax.config.schema import Sample
from kaleido_jax.data import loader, records
from kaleido_jax.data.order import Order
from kaleido_jax.data.records import (
    Manifest,
    Record,
    Records,
    encode_image,
    open_records,
    pack,
    write_manifest,
    write_shard,
)
from kaleido_jax.errors import UserError
from kaleido_jax.intake.recognize import recognize
from kaleido_jax.intake.survey import survey
from kaleido_jax.interop.files.weights import open_weights, read_float32
from kaleido_jax.interop.mdm.load import holds_denoiser, open_denoiser
from kaleido_jax.interop.source import read_weight
from kaleido_jax.interop.t5.load import open_t5
from kaleido_jax.interop.t5.t5x import T5xCheckpoint, write_t5x
from kaleido_jax.latents import address
from kaleido_jax.latents.codec import Codec
from kaleido_jax.latents.grammar import parse, serialize
from kaleido_jax.latents.tokenizer import load_tokenizer
from kaleido_jax.latents.types import Latents
from kaleido_jax.runtime import checkpoints
from kaleido_jax.sampling.output import png_bytes
from kaleido_jax.sampling.recipe import Recipe, load_recipe, new_recipe
from kaleido_jax.studio.server import create_app
from tests.interop.files import torch_files

SEGMENTS = ("text", "bbox", "blob", "voken")
Z = {
    "text": "a red apple on the left, on a white ground",
    "bbox": [{"phrase": "red apple", "box": [100, 420, 480, 900]}, {"phrase": "pear", "box": [1, 2, 3, 4]}],
    "blob": [{"phrase": "red apple", "blob": [500, 500, 200, 100, 45]}],
    "voken": [1, 2, 3, 4, 5, 6, 7, 63],
}
STATE = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "a.bias": np.ones(3, np.float16)}


@dataclass(frozen=True, kw_only=True)
class Target:
    """Something that reads bytes."""

    seeds: Sequence[bytes]
    read: Callable[[bytes], object]
    form: str = "bytes"  # of the seeds, for mutations: "bytes", "json" or "msgpack"
    also: tuple[type[Exception], ...] = ()  # what the docstring says that it raises besides UserError


def probe(target: Target, data: bytes) -> str | None:
    """Reads the bytes -> None if they have a value, or the error's one line.

    Raises:
      whatever the target raises that it must not.
    """
    try:
        target.read(data)
    except UserError as error:
        assert len(str(error).splitlines()) == 1 and "Traceback" not in str(error)
        return str(error)
    except target.also as error:
        return repr(error)
    return None


@functools.cache
def _codec(segments: tuple[str, ...] = SEGMENTS) -> Codec:
    return Codec(tokenizer=load_tokenizer("emoji", 64), segments=segments, vokens_per_image=8)


# ------------------------------------------------------------------------------------------------ records
def _record(size: int = 8) -> Record:
    codec, z = _codec(), Latents.from_json(Z)
    return Record(
        id="a",
        image=encode_image(np.zeros((size, size, 3), np.uint8)),
        caption="fruit",
        caption_tokens=[5, 6],
        latents=z,
        tokens={segment: list(codec.segment_tokens(z, segment)) for segment in SEGMENTS},
        provenance={segment: {"model": "m"} for segment in SEGMENTS},
        shorter_side_px=8,
    )


def _folder_of_records(folder: Path, count: int = 2) -> Path:
    """A folder with one shard."""
    codec, made = _codec(), [_record(32)] * count
    shard = write_shard(folder / "a.array_record", made)
    manifest = Manifest(
        version=records.VERSION,
        source={"name": "emoji", "split": "train", "image_size": 32},
        class_names=["fruit"],
        provenance={segment: {"model": "m"} for segment in SEGMENTS},
        vocabulary=codec.tokenizer.fingerprint,
        codebook_size=64,
        coordinate_step=1,
        counts=dict.fromkeys(SEGMENTS, count),
        max_tokens=dict.fromkeys(("caption", *SEGMENTS, " | ".join(SEGMENTS)), 200),
        left_out=1,
        reasons={"text: no caption": 1},
        failures=[{"id": "b", "segment": "text", "reason": "no caption"}],
        agreement={},
        shards=[shard],
        date="2026-01-01",
    )
    write_manifest(folder, manifest)
    return folder


def _payload(folder: Path) -> Target:
    """The msgpack of one record, as training reads it."""

    def read(data: bytes) -> None:
        records.unpack_for_training(data)
        records.unpack(data)

    return Target(seeds=[pack(_record())], read=read, form="msgpack", also=(ValueError, TypeError, KeyError))


def _sample(folder: Path) -> Target:
    """The msgpack of one record inside a shard, through the loader."""
    _folder_of_records(folder)
    opened = open_records(folder, codec=_codec(), image_size=32)
    payload = opened._source[0]

    class One(Records):
        def _read(self, index, unpacked):
            self._source = [payload_now[0]]
            return super()._read(0, unpacked)

    payload_now = [payload]
    reader = loader._Reader(
        records=One(folder, opened.manifest, 32),
        codec=_codec(),
        order=Order(np.zeros(2, np.int64), 1, seed=0),
        rows=slice(None),
        max_caption_tokens=64,
        bounds=(1024,),
        micros=("scale",),
    )

    def read(data: bytes) -> None:
        payload_now[0] = data
        sample = reader._sample(0)
        assert sample["image"].shape == (32, 32, 3), sample["image"].shape
        assert all(np.issubdtype(np.asarray(value).dtype, np.number) for value in sample.values())
        reader.records[0]

    return Target(seeds=[payload], read=read, form="msgpack")


def _shard(folder: Path) -> Target:
    """The bytes of a shard whose checksum holds, as an own writer may make it."""
    _folder_of_records(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    path = folder / manifest["shards"][0]["file"]

    def read(data: bytes) -> None:
        path.write_bytes(data)
        manifest["shards"][0] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        opened = open_records(folder, codec=_codec(), image_size=32)
        for index in range(len(opened)):
            opened[index]

    return Target(seeds=[path.read_bytes()], read=read)


def _manifest(folder: Path) -> Target:
    """manifest.json."""
    _folder_of_records(folder)
    path = folder / "manifest.json"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        opened = open_records(folder, codec=_codec(), image_size=32)
        len(opened)
        loader._check_lengths(opened, _codec(), 128, 4096)
        opened[0]

    return Target(seeds=[path.read_bytes()], read=read, form="json")


def _lengths(folder: Path) -> Target:
    """The file of lengths that a folder of records keeps."""
    opened = open_records(_folder_of_records(folder), codec=_codec(), image_size=32)
    lengths = opened.latents_lengths(_codec())
    path = next(folder.glob(".lengths-*"))

    def read(data: bytes) -> None:
        path.write_bytes(data)
        found = opened.latents_lengths(_codec())
        assert found.shape == lengths.shape and found.dtype == lengths.dtype

    return Target(seeds=[path.read_bytes()], read=read)


def _image(folder: Path) -> Target:
    """The PNG of a record."""
    del folder

    def read(data: bytes) -> None:
        loader._decoded(dataclasses.replace(records.unpack_for_training(pack(_record())), image=data), 8)

    return Target(seeds=[_record().image], read=read)


def _table(suffix: str, *seeds: str) -> Callable[[Path], Target]:
    """A table beside photos, as `init` finds and reads it."""

    def make(folder: Path) -> Target:
        for name in ("1.jpg", "2.jpg"):
            Image.new("RGB", (8, 8)).save(folder / name)

        def read(data: bytes) -> None:
            (folder / f"train{suffix}").write_bytes(data)
            survey(recognize(folder), max_boxes=3, show=False)

        form = "json" if suffix == ".json" else "bytes"
        return Target(seeds=[seed.encode() for seed in seeds], read=read, form=form)

    return make


# ------------------------------------------------------------------------------------------------ latents
def _line(folder: Path) -> Target:
    """A line of latents: what is read can be written, and is the same when read again."""
    del folder
    seeds = [
        serialize(Latents.from_json(Z), segments).encode() for segments in (SEGMENTS, ("text",), ("bbox", "voken"))
    ]

    def read(data: bytes) -> None:
        text = data.decode("utf-8", "surrogateescape")
        error = None
        for segments in (SEGMENTS, ("text", "bbox", "voken"), ("text",), ("bbox",), ("blob",), ("voken",), ()):
            try:
                z = parse(text, segments)
            except UserError as found:
                error = found
            else:
                assert parse(serialize(z, segments), segments) == z
                assert Latents.from_json(json.loads(json.dumps(z.to_json()))) == z
        if error:
            raise error

    return Target(seeds=seeds, read=read)


def _json_z(folder: Path) -> Target:
    """The JSON form of latents."""
    del folder

    def read(data: bytes) -> None:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            return
        z = Latents.from_json(value)
        parse(serialize(z, list(z.to_json())), list(z.to_json()))
        _codec().snap(_codec().fit(z))

    return Target(seeds=[json.dumps(Z).encode()], read=read, form="json")


def _ids(folder: Path) -> Target:
    """Token ids, two bytes each, as a prior may sample them."""
    del folder
    codec = _codec()

    def read(data: bytes) -> None:
        ids = np.frombuffer(data[: len(data) // 2 * 2], "<u2").astype(np.int64) % codec.tokenizer.vocab_size
        codec.encode(codec.decode(ids))

    ids = np.array(codec.encode(Latents.from_json(Z)), "<u2")
    return Target(seeds=[ids.tobytes()], read=read)


def _address(folder: Path) -> Target:
    """An edit "ADDRESS=VALUE" of latents."""
    del folder
    z = Latents.from_json(Z)

    def read(data: bytes) -> None:
        where, _, text = data.decode("utf-8", "surrogateescape").partition("=")
        edited = address.assign(z, where, text)
        serialize(edited, SEGMENTS)

    seeds = [
        b"bbox.0.box.2=7",
        b"bbox.0=(1,2,3,4)",
        b"text=a pear",
        b"voken.3=17",
        b"blob.0.phrase=pear",
        b"bbox.2=pear (1,2,3,4)",
    ]
    return Target(seeds=seeds, read=read)


# ------------------------------------------------------------------------------------------------ recipes
def _recipe_seeds() -> list[Recipe]:
    """A recipe of two images, and one of an edit."""
    digits = "0123456789abcdef"
    model = {"name": "m", "step": 1, "config": digits, "weights": digits, "worse": None, "precision": "float32"}
    recipe = new_recipe(model, ["fruit"], images_per_caption=2, seed=3, sample=Sample(), has_z=True)
    batch = {"captions": [1, 0], "images": [2, 0], "tokens": 64}
    recipe["rows"][0] |= {"tokens": [5, 6, 1], "latents": Z, "pixels": [digits] * 2, "batch": [batch, batch]}
    edit = {
        "of": digits,
        "changed": ["text"],
        "locked": [],
        "resampled": ["bbox"],
        "seed": 1,
        "settings": {"gamma": 2.0},
    }
    return [recipe, recipe | {"history": [edit | {"before": {"text": "a pear", "caption": "bird"}}]}]


def _recipe_json(folder: Path) -> Target:
    """A recipe as JSON."""
    del folder
    return Target(seeds=[json.dumps(one).encode() for one in _recipe_seeds()], read=load_recipe, form="json")


def _recipe_png(folder: Path) -> Target:
    """A PNG with a recipe."""
    del folder
    image = Image.fromarray(np.zeros((4, 4, 3), np.uint8))
    return Target(seeds=[png_bytes(image, one) for one in _recipe_seeds()] + [png_bytes(image)], read=load_recipe)


# ------------------------------------------------------------------------------------------------- config
def _flags(folder: Path) -> Target:
    """Flags of the config, one a line."""
    del folder
    base = load_values("emoji_combined")

    def read(data: bytes) -> None:
        flags = [f"--config.{line}" for line in data.decode("utf-8", "surrogateescape").split("\n")]
        original, load.load_values = load.load_values, lambda spec: json.loads(json.dumps(base, default=str))
        try:
            config_from_flags("emoji_combined", flags)
        finally:
            load.load_values = original

    seeds = [
        b"train.batch_size=64\nsample.gamma=4.0",
        b"sample.captions=('a','b')\ndata.root=~/x",
        b"model.denoiser.channels=(8, 16)\nmodel.denoiser.inner.image_size=8",
        b"diffusion.shift=1.5\nlatents.segments=('text','voken')\ntrain.lr_schedule=cosine",
        b"sample.guidance_interval=(0.0, 1.0)\neval.protocol=none\nmesh.rules=()",
    ]
    return Target(seeds=seeds, read=read)


def _config_json(folder: Path) -> Target:
    """The config.json of a workdir, as --config."""
    path = folder / "config.json"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        validate(load_values(str(path)))

    seed = (MODELS / "emoji-tiny" / "config.json").read_bytes()
    return Target(seeds=[seed], read=read, form="json")


# -------------------------------------------------------------------------------------------- checkpoints
class _Place:
    def get_state(self) -> dict:
        return {"batch": 3, "batch_size": 8}

    def set_state(self, state: dict) -> None:
        if state["batch_size"] != 8:
            raise UserError("another size")


def _checkpoint(folder: Path) -> Target:
    """The JSON files of a checkpoint; the first byte says which."""
    made, used = folder / "made", folder / "used"
    state = {"ema": {"a": jnp.arange(6.0)}, "params": {"a": jnp.arange(6.0)}, "step": jnp.int32(1)}
    with checkpoints.open_manager(made, checkpoints.Settings()) as manager:
        checkpoints.save(manager, 1, state, _Place())
    inside = made / "checkpoints" / "1"
    files = sorted(
        path.relative_to(made) for path in inside.rglob("*") if path.is_file() and path.stat().st_size < 8192
    )
    files = [file for file in files if b"{" in (made / file).read_bytes()[:1]]
    shapes = {"ema": {"a": state["ema"]["a"]}, "params": {"a": state["params"]["a"]}, "step": state["step"]}

    def read(data: bytes) -> None:
        shutil.rmtree(used, ignore_errors=True)
        shutil.copytree(made, used)
        (used / files[(data[:1] or b"\0")[0] % len(files)]).write_bytes(data[1:])
        for _ in checkpoints.certificates(used):
            pass
        with checkpoints.open_manager(used, checkpoints.Settings()) as manager:
            checkpoints.restore(manager, shapes, _Place())

    return Target(seeds=[bytes([i]) + (made / file).read_bytes() for i, file in enumerate(files)], read=read)


# ----------------------------------------------------------------------------------------- weights' files
def _weights(name: str, seed: Callable[[Path], object], also_t5: bool = False) -> Callable[[Path], Target]:
    """A file of weights: opened, each shape told, each tensor read."""

    def make(folder: Path) -> Target:
        path = folder / name
        seed(path)

        def read(data: bytes) -> None:
            path.write_bytes(data)
            source = open_weights(path, "weights")
            for tensor in source.names:
                source.shape(tensor)
            read_float32(source)
            for opened in (holds_denoiser, open_denoiser) if path.suffix != ".npz" else ():
                opened(path)
            if also_t5:
                open_t5(path)

        return Target(seeds=[path.read_bytes()], read=read)

    return make


def _torch_pickle(folder: Path) -> Target:
    """The pickle in a torch zip that is whole."""
    path, made = folder / "x.pth", torch_files.write(folder / "made.pth", STATE)
    with zipfile.ZipFile(made) as file:
        entries = {name: file.read(name) for name in file.namelist()}

    def read(data: bytes) -> None:
        with zipfile.ZipFile(path, "w") as file:
            for name, content in entries.items():
                file.writestr(name, data if name.endswith("data.pkl") else content)
        source = open_weights(path, "weights")
        for name in source.names:
            source.shape(name)
            read_weight(source, name)
        open_denoiser(path)

    return Target(seeds=[entries["archive/data.pkl"]], read=read)


def _index(folder: Path) -> Target:
    """The index of safetensors shards."""
    (folder / "model-00001-of-00001.safetensors").write_bytes(save(STATE))
    path = folder / "model.safetensors.index.json"
    seed = {"metadata": {}, "weight_map": dict.fromkeys(STATE, "model-00001-of-00001.safetensors")}

    def read(data: bytes) -> None:
        path.write_bytes(data)
        open_t5(folder)

    return Target(seeds=[json.dumps(seed).encode()], read=read, form="json")


def _npz(path: Path) -> None:
    np.savez(path, **STATE)


class _FakeT5:
    """Two tensors under t5x's names."""

    path = Path("t5")
    names = ("encoder/encoder_norm/scale", "token_embedder/embedding")

    def shape(self, name: str) -> tuple[int, ...]:
        return self.read(name).shape

    def read(self, name: str) -> np.ndarray:
        return np.ones((2, 3) if "token" in name else (3,), np.float32)


def _t5x(folder: Path) -> Target:
    """The msgpack file of a t5x checkpoint, with arrays inside and beside it."""
    try:
        write_t5x(_FakeT5(), folder)
        path = folder / "checkpoint_0" / "checkpoint"
    except (KeyError, UserError):
        path = folder / "checkpoint"
    spec = msgpack.unpackb(path.read_bytes()) if path.exists() else {}
    inside = serialization.msgpack_serialize({"target": {"encoder": {"scale": np.ones(3, np.float32)}}})
    seeds = [inside] + ([msgpack.packb(spec)] if spec else [])
    path.parent.mkdir(exist_ok=True)

    def read(data: bytes) -> None:
        path.write_bytes(data)
        source = T5xCheckpoint(path)
        for name in source.names:
            source.shape(name)
            read_weight(source, name)

    return Target(seeds=seeds, read=read, form="msgpack")


def _zarray(folder: Path) -> Target:
    """The .zarray of one array of a t5x checkpoint."""
    write_t5x(_FakeT5(), folder)
    hidden = sorted((folder / "checkpoint_0").glob("*/.zarray"))[0]
    seed = hidden.read_bytes()

    def read(data: bytes) -> None:
        hidden.write_bytes(data)
        source = T5xCheckpoint(folder)
        for name in source.names:
            read_weight(source, name)

    return Target(seeds=[seed], read=read, form="json")


# ------------------------------------------------------------------------------------------------- studio
class _Echo:
    """An engine without a model."""

    def load(self) -> None:
        pass

    def describe(self) -> dict:
        return {"name": "echo"}

    def check_weights(self, shown: str) -> None:
        pass

    def work(self, job: object) -> dict:
        return {}


def _studio(folder: Path) -> Target:
    """A request as HTTP: a line, headers, an empty line, the body."""
    del folder
    app = create_app(_Echo())
    z = json.dumps(Z)
    recipe = json.dumps(_recipe_seeds()[0])
    bodies = {
        "generate": f'{{"caption": "fruit", "variations": 2, "seed": 1, "settings": {{"gamma": 2}}, "keep": {z}}}',
        "edit": f'{{"recipe": {recipe}, "latents": {z}, "lock": ["text"], "follow": true, "caption": "bird"}}',
        "draw": f'{{"recipe": {recipe}}}',
        "modes": '{"caption": "fruit", "count": 4, "settings": {"temperature": 0.5}}',
    }
    head = "POST /api/{} HTTP/1.1\nhost: localhost:1\norigin: http://localhost:1\n"
    head += "content-type: {}\ncookie: kaleido_1={}\n\n{}"
    seeds = [head.format(name, "application/json", "A" * 32, body).encode() for name, body in bodies.items()]
    seeds.append(head.format("recipe", "application/octet-stream", "", recipe).encode())
    seeds += [
        f"{line} HTTP/1.1\nhost: 127.0.0.1:1\n\n".encode() for line in ("GET /", "GET /static/app.js", "GET /api/model")
    ]
    seeds += [
        f"{line} HTTP/1.1\nhost: [::1]:1\n\n".encode() for line in ("DELETE /api/jobs/x", "GET /api/jobs/x/events")
    ]

    def read(data: bytes) -> None:
        top, _, body = data.partition(b"\n\n")
        first, *lines = top.split(b"\n")
        method, _, path = first.decode("latin-1").partition(" ")
        path, _, query = path.rpartition(" ")[0].partition("?")
        headers = [(k.strip().lower(), v.strip()) for k, _, v in (line.partition(b":") for line in lines)]
        status, content = asyncio.run(ask(app, method, path, query.encode("latin-1"), headers, body))
        assert status < 500, (status, content[:200])
        if path.startswith("/api/") and status >= 400:
            assert "message" in json.loads(content)

    return Target(seeds=seeds, read=read)


async def ask(app: Callable, method: str, path: str, query: bytes, headers: list, body: bytes) -> tuple[int, bytes]:
    """(status, content) of one request to an ASGI application, without a socket."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode("utf-8", "surrogateescape"),
        "query_string": query,
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 1),
    }
    sent: list[dict] = []
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict:
        if waiting:
            return waiting.pop()
        await asyncio.sleep(3600)
        return {"type": "http.disconnect"}

    async def send(message: dict) -> None:
        sent.append(message)

    await asyncio.wait_for(app(scope, receive, send), 120)  # against hanging; a machine may stand still
    status = next(one["status"] for one in sent if one["type"] == "http.response.start")
    return status, b"".join(one.get("body", b"") for one in sent if one["type"] == "http.response.body")


TARGETS: dict[str, Callable[[Path], Target]] = {
    "record": _payload,
    "sample": _sample,
    "shard": _shard,
    "manifest": _manifest,
    "lengths": _lengths,
    "image": _image,
    "table_csv": _table(".csv", 'image,caption\n1.jpg,a\n2.jpg,"b, ""c"""\n', "image;text\r\n1.jpg;a\r\n"),
    "table_jsonl": _table(".jsonl", '{"image": "1.jpg", "caption": "a"}\n{"image": "2.jpg", "\\ud83d": "b"}\n'),
    "table_json": _table(".json", '[{"image": "1.jpg", "caption": "a"}, {"image": "2.jpg", "\\ud83d": 7}]'),
    "latents_line": _line,
    "latents_json": _json_z,
    "latents_tokens": _ids,
    "latents_address": _address,
    "recipe_json": _recipe_json,
    "recipe_png": _recipe_png,
    "config_flags": _flags,
    "config_json": _config_json,
    "checkpoint": _checkpoint,
    "t5x": _t5x,
    "zarray": _zarray,
    "torch_zip": _weights("x.pth", lambda path: torch_files.write(path, STATE)),
    "torch_pickle": _torch_pickle,
    "torch_legacy": _weights("x.pth", lambda path: torch_files.write_legacy(path, STATE)),
    "safetensors": _weights("x.safetensors", lambda path: path.write_bytes(save(STATE)), also_t5=True),
    "safetensors_index": _index,
    "npz": _weights("x.npz", _npz),
    "studio": _studio,
}
