"""A fifth kind of latents, registered from outside in this one file: it goes wherever the four shipped ones go."""

import dataclasses
import json
import pickle
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from kaleido_jax.config.checks import validate as validate_config
from kaleido_jax.config.codec import open_codec
from kaleido_jax.data.loader import make_loader
from kaleido_jax.data.records import VERSION, Manifest, Record, encode_image, open_records, write_manifest, write_shard
from kaleido_jax.errors import UserError
from kaleido_jax.latents import grammar, segments
from kaleido_jax.latents.codec import Codec
from kaleido_jax.latents.nodes import DIGIT, SPACE, Nodes, Part
from kaleido_jax.latents.render.image import render_outlines, render_panel
from kaleido_jax.latents.render.shapes import Cell, Drawing, Paragraph
from kaleido_jax.latents.render.svg import render_svg
from kaleido_jax.latents.segments.base import Vocabulary, decode_words, encode_words
from kaleido_jax.latents.segments.bbox import Box
from kaleido_jax.latents.tokenizer import Tokenizer, load_tokenizer
from kaleido_jax.latents.types import Latents, check_segments, select, validate
from kaleido_jax.latents.validity import LatentsError, latents_error
from kaleido_jax.sampling.pipeline import KaleidoPipeline
from kaleido_jax.train.fit import fit
from tests.latents.test_automaton import draw
from tests.tiny import single_net_config

SIDE = 4


# ------------------------------------------------------------------------------------- the whole new kind
class DepthSegment:
    """How near each of 4 x 4 cells is, a digit 0..9 each; written as "0123 4567 8901 2345", row by row."""

    name = "depth"

    def freeze(self, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    def check(self, value: Any) -> None:
        if not (isinstance(value, tuple) and len(value) == SIDE**2 and all(v in range(10) for v in value)):
            raise latents_error(f"depth {value!r}", f"{SIDE**2} digits", "correct it")

    def to_json(self, value: tuple[int, ...]) -> list[list[int]]:
        return [list(value[i : i + SIDE]) for i in range(0, SIDE**2, SIDE)]

    def from_json(self, value: Any) -> tuple[int, ...]:
        if not (isinstance(value, list) and all(isinstance(row, list) for row in value)):
            raise latents_error(f"depth {value!r}", "rows of digits", "write [[...], ...]")
        return tuple(v for row in value for v in row)

    def write(self, value: tuple[int, ...]) -> str:
        return " ".join("".join(map(str, row)) for row in self.to_json(value))

    def read(self, string: str) -> tuple[int, ...]:
        if not re.fullmatch(r"[0-9]{4}( [0-9]{4}){3}", string):
            raise latents_error(f"depth {string[:40]!r}", "four times four digits", "correct it")
        return tuple(int(ch) for ch in string if ch != " ")

    def encode(self, value: tuple[int, ...], vocabulary: Vocabulary) -> list[int]:
        return encode_words(self.name, self.write(value), vocabulary.tokenizer)

    def decode(self, ids: Sequence[int], vocabulary: Vocabulary) -> tuple[int, ...]:
        return self.read(decode_words(self.name, ids, vocabulary.tokenizer))

    def fit(self, value: tuple[int, ...], tokenizer: Tokenizer) -> tuple[int, ...]:
        return value

    def snap(self, value: tuple[int, ...], step: int) -> tuple[int, ...]:
        return value

    def grammar(self, nodes: Nodes, vocabulary: Vocabulary) -> Part:
        enter = end = nodes.new()
        for kind in (SPACE, *(DIGIT,) * SIDE) * SIDE:
            following = nodes.new()
            nodes.link(end, (kind,), following)
            end = following
        return Part(enter, end)

    def render(self, value: tuple[int, ...]) -> Drawing:
        cells = []
        for i, v in enumerate(value):
            y, x = divmod(i, SIDE)
            side = 1000 // SIDE
            cells.append(Cell(box=(x * side, y * side, (x + 1) * side, (y + 1) * side), level=v / 9))
        return Drawing(square=tuple(cells), below=(Paragraph(text=f"depth {self.write(value)}"),))


DEPTH = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5)
CHOSEN = ("text", "bbox", "voken", "depth")
Z = Latents(text="a fruit", bbox=[Box("fruit", (100, 100, 400, 400))], voken=[0, 1, 2, 3])


def named(name):
    segment = DepthSegment()
    segment.name = name
    return segment


@pytest.fixture(scope="module", autouse=True)
def depth():
    with segments.registered(DepthSegment()):
        yield


@pytest.fixture(scope="module")
def z():
    return Z.replace(depth=list(DEPTH))


@pytest.fixture(scope="module")
def config(tmp_path_factory, z):
    """Of records in a folder that do hold the new kind."""
    folder = tmp_path_factory.mktemp("records")
    config = single_net_config(
        latents__segments=CHOSEN,
        latents__max_latents_tokens=96,
        data__source="records",
        data__records=str(folder),
        train__num_steps=3,
    )
    codec, rng = open_codec(config), np.random.default_rng(0)
    records = []
    for i in range(16):
        latents = z.replace(depth=rng.integers(0, 10, SIDE**2).tolist())
        records.append(
            Record(
                id=str(i),
                image=encode_image(rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)),
                caption="fruit",
                caption_tokens=codec.tokenizer.encode("fruit"),
                latents=latents,
                tokens={s: codec.segment_tokens(latents, s) for s in CHOSEN},
                provenance={s: {"model": "test"} for s in CHOSEN},
            )
        )
    shard = write_shard(folder / "test.array_record", records)
    write_manifest(
        folder,
        Manifest(
            version=VERSION,
            source={"name": "test", "image_size": 8},
            provenance={},
            vocabulary=codec.tokenizer.fingerprint,
            codebook_size=codec.tokenizer.codebook_size,
            coordinate_step=codec.coordinate_step,
            counts=dict.fromkeys(CHOSEN, 16),
            max_tokens={"caption": 2, " | ".join(CHOSEN): max(len(codec.join(r.tokens)) for r in records)},
            class_names=[],
            left_out=0,
            reasons={},
            failures=[],
            agreement={},
            shards=[shard],
            date="2026-01-01",
        ),
    )
    return config


@pytest.fixture(scope="module")
def pipeline(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    assert fit(config, workdir)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 3 and np.isfinite(lines[-1]["loss_ar"])
    return KaleidoPipeline.from_pretrained(workdir)


# ------------------------------------------------------------------------------------ where it goes
def test_values_json_and_pickle(z):
    assert z.depth == DEPTH and Z.depth is None and z.replace(depth=None) == Z
    assert json.loads(json.dumps(z.to_json()))["depth"][1] == [4, 5, 6, 7]
    assert Latents.from_json(z.to_json()) == z == pickle.loads(pickle.dumps(z)) and hash(z) != hash(Z)
    for wrong in ([1, 2], [[1] * 4] * 3, [[1.5] * 4] * 4):
        with pytest.raises(LatentsError, match="depth"):
            Latents.from_json({"depth": wrong})
    with pytest.raises(LatentsError, match="16 digits"):
        validate(z.replace(depth=[10] * 16))


def test_the_grammar_writes_and_reads_it(z):
    line = grammar.serialize(z, ("bbox", "depth"))
    assert line == "fruit (100, 100, 400, 400) | 0123 4567 8901 2345"
    assert grammar.parse(line, ("bbox", "depth")) == select(z, ("bbox", "depth"))


@pytest.mark.parametrize("vocabulary", ["emoji", "t5"])
def test_constrained_sampling_gives_what_parses(vocabulary, z):
    codec = Codec(tokenizer=load_tokenizer(vocabulary, 64), segments=("voken", "depth"), vokens_per_image=3)
    machine = codec.constraint
    shortest = int(machine.tokens_to_end(machine.start(1))[0])
    written = codec.encode(z.replace(voken=[1, 2, 3]))
    state, wrong = machine.follow(written)
    assert wrong is None and machine.tokens_to_end(state) == 0 and shortest <= len(written) + 16
    for room in (0, 24):  # the tightest budget suffices
        rows = draw(machine, np.zeros(codec.tokenizer.vocab_size, np.float32), 1, max_len=shortest + room, rows=8)
        found = [codec.decode(row) for row in np.asarray(rows)]
        assert all(len(latents.voken) == 3 for latents in found)
        assert not room or len({latents.depth for latents in found}) == 8


def test_records_and_batches_hold_it(config):
    codec = open_codec(config)
    records = open_records(config.data.records, codec=codec, image_size=8)
    sizes = {"batch_size": 8, "max_caption_tokens": 8, "max_latents_tokens": 96}
    batch = next(make_loader(records, codec=codec, seed=0, **sizes))
    for index, row in zip(batch["sample_id"], batch["decoder_target_tokens"], strict=True):
        assert codec.decode(row) == records[index].latents and records[index].latents.depth


@pytest.mark.slow
def test_a_trained_model_samples_and_edits_it(pipeline):
    out = pipeline(["fruit"] * 2, seed=0, prefix=[None, Z], temperature=1.0, top_p=1.0)
    free, locked = out.latents
    assert len(free.depth) == len(locked.depth) == SIDE**2 and locked.replace(depth=None) == Z
    edited = pipeline("fruit", seed=0, latents=locked.replace(depth=DEPTH))
    assert edited.latents[0].depth == DEPTH and edited.images[0][0].size == (8, 8)


def test_pictures_show_it(z):
    panel, outlines = render_panel(z, 160), render_outlines(render_panel(Latents(), 160), Latents(depth=DEPTH))
    assert outlines.getpixel((140, 20)) == (85, 85, 85)  # the fourth cell, level 3/9
    assert panel.height > render_panel(Z, 160).height
    root = ElementTree.fromstring(render_svg(z, 160))
    texts = [e.text for e in root.iter("{http://www.w3.org/2000/svg}text")]
    assert " ".join(texts).startswith("fruit a fruit 0 1 2") and "depth 0123" in " ".join(texts)
    assert "#555555" in {e.get("fill") for e in root.iter("{http://www.w3.org/2000/svg}rect")}


def test_config_and_order_know_registered_names(config):
    assert check_segments(CHOSEN) == CHOSEN == config.latents.segments
    with pytest.raises(LatentsError, match="in this order"):
        check_segments(("depth", "text"))
    with segments.registered(named("other")):
        assert segments.names()[-2:] == ("depth", "other")
    with pytest.raises(UserError, match="other"):
        validate_config(dataclasses.replace(config, latents=dataclasses.replace(config.latents, segments=("other",))))


def test_a_config_file_may_register_again_and_a_with_statement_restores():
    before, again = segments.get("depth"), DepthSegment()
    with segments.registered(again):
        assert segments.get("depth") is again and segments.names()[-1] == "depth"
    assert segments.get("depth") is before


@pytest.mark.parametrize("name", ["text", "caption", "to_json", "two words", "Depth"])
def test_names_that_would_mean_two_things_are_refused(name):
    with pytest.raises(LatentsError):
        segments.register(named(name))
