"""Tar shards: random access by an index; what is bad fails alone, also where a shard is broken."""

import gzip
import io
import json
import pickle
import random
import tarfile

import numpy as np
import pytest
from PIL import Image

from kaleido_jax.annotate.job.run import annotate
from kaleido_jax.config.checks import validate
from kaleido_jax.config.schema import DataTar, default_config
from kaleido_jax.data.sources import tar
from kaleido_jax.errors import UserError
from kaleido_jax.latents.tokenizer import load_tokenizer
from tests.data.sources.opening import open_source, outcomes


def photo(tone=100, kind="JPEG"):
    file = io.BytesIO()
    Image.new("RGB", (12, 8), (tone, 0, 0)).save(file, kind)
    return file.getvalue()


def shard(path, files, tar_format=tarfile.PAX_FORMAT):
    """A tar of (name, content) pairs; a dict becomes JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tar_format) as archive:
        for name, content in files:
            content = json.dumps(content).encode() if isinstance(content, dict) else content
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def example(key, caption, tone=100):
    """The files of one example as img2dataset writes them."""
    url = {"url": f"http://h/{key}", "caption": "of the json", "status": "success"}
    return [(f"{key}.jpg", photo(tone)), (f"{key}.json", url), (f"{key}.txt", caption.encode())]


@pytest.fixture
def cc12m(tmp_path):
    shard(tmp_path / "00000.tar", example("000000000", "a dog\n") + example("000000001", "a cat", 200))
    shard(tmp_path / "00001.tar", example("000010000", "a house"))
    shard(tmp_path / "._00001.tar", [])
    (tmp_path / "00000.parquet").write_bytes(b"PAR1")
    return tmp_path


def test_shards_of_img2dataset(cc12m):
    source = open_source("tar", root=cc12m)
    assert outcomes(source) == ["a dog", "a cat", "a house"]
    assert [source.id(i) for i in range(3)] == ["tar/00000/000000", "tar/00000/000001", "tar/00001/000000"]
    cat = source[1]  # any order
    assert abs(int(cat.image[0, 0, 0]) - 200) < 4 and cat.credit == "http://h/000000001" and cat.description is None
    assert pickle.loads(pickle.dumps(source))[2].caption == "a house"
    with pytest.raises(IndexError):
        source[3]
    with pytest.raises(UserError, match="expected a source with classes"):
        source.label(0)
    assert len(open_source("tar", root=cc12m.parent, split=cc12m.name, labels=())) == 3
    one = open_source("tar", root=cc12m.parent, labels=(f"{cc12m.name}/00001.tar",))
    assert one.id(0) == f"tar/{cc12m.name}/00001/000000" and one.fingerprint != source.fingerprint
    with pytest.raises(UserError, match=r"no example in \*.tar of"):
        open_source("tar", "train", root=cc12m)
    with pytest.raises(UserError, match="02.tar: No such file or directory; expected a tar shard"):
        open_source("tar", root=cc12m, labels=("02.tar",))


@pytest.mark.parametrize("bad", [b"", b"{", b"[1]", b"[" * 100_000, b"\xff"])
def test_a_bad_json_costs_no_photo_whose_caption_is_elsewhere(tmp_path, bad):
    files = [("a.jpg", photo()), ("a.json", bad), ("a.txt", b"a dog"), ("b.jpg", photo()), ("b.json", bad)]
    shard(tmp_path / "0.tar", [*files, ("b.cls", b"1")])
    good, without = outcomes(open_source("tar", root=tmp_path))
    assert good == "a dog" and without.startswith("UserError: a .json file ")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert open_source("tar", root=tmp_path, tar=DataTar(classes="classes.txt"))[1].caption == "dog"


def test_an_index_is_made_once_and_again_if_its_shard_changes(cc12m, monkeypatch):
    made, make = [], tar._make_index
    monkeypatch.setattr(tar, "_make_index", lambda path: made.append(path.name) or make(path))
    first = open_source("tar", root=cc12m)
    assert made == ["00000.tar", "00001.tar"]
    assert open_source("tar", root=cc12m).fingerprint == first.fingerprint and len(made) == 2
    shard(cc12m / "00001.tar", example("000010000", "a barn"))
    again = open_source("tar", root=cc12m)
    assert made[2:] == ["00001.tar"] and again[2].caption == "a barn" and again.fingerprint != first.fingerprint
    kept = cc12m / ".00000.tar.index"
    whole = kept.read_bytes()
    for damaged in (b"", whole[:-1], b"\xc0", whole.replace(b"starts", b"startz"), *(_flipped(whole, 20))):
        kept.write_bytes(damaged)
        assert outcomes(open_source("tar", root=cc12m)) == ["a dog", "a cat", "a barn"]


def _flipped(content, times):
    for seed in range(times):
        damaged = bytearray(content)
        damaged[random.Random(seed).randrange(len(content))] ^= 1 << seed % 8
        yield bytes(damaged)


def test_an_index_that_cannot_be_kept_is_held_in_memory_or_kept_elsewhere(cc12m, monkeypatch, caplog):
    def refuse(path, content):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(tar, "write_atomically", refuse)
        assert len(open_source("tar", root=cc12m)) == 3
    assert caplog.text.count("no index is kept") == 1 and "set data.tar.index" in caplog.text
    assert not list(cc12m.glob(".*.index"))
    elsewhere = cc12m / "indexes"
    for _ in range(2):
        assert len(open_source("tar", root=cc12m, tar=DataTar(index=str(elsewhere)))) == 3
    assert len(list(elsewhere.iterdir())) == 2 and not list(cc12m.glob(".*.index"))


def test_captions_descriptions_and_classes(tmp_path):
    fields = {"alt": "from the json", "long": " much is said ", "description": 5}
    files = [
        ("train/a.WEBP", photo(kind="WEBP")),
        ("train/a.json", fields),
        ("train/a.cls", b"1\n"),
        ("train/a.npy", b"x"),
        ("train/b.png", photo(kind="PNG")),
        ("train/b.cls", b"7"),
    ]
    shard(tmp_path / "x.tar", files)
    source = open_source("tar", root=tmp_path, tar=DataTar(caption="alt", description="long"))
    assert (source[0].caption, source[0].description) == ("from the json", "much is said")
    assert (
        "without a caption; expected text in KEY.txt or in 'alt' of KEY.json; set data.tar.classes"
        in (outcomes(source)[1])
    )
    (tmp_path / "classes.txt").write_text("n01440764\nred_fox, Vulpes\n")
    classes = open_source("tar", root=tmp_path, tar=DataTar(classes="classes.txt"))
    assert classes.class_names == ("tench", "red fox") and classes.label(0) == 1
    assert outcomes(classes)[0] == "red fox" and "class is '7'; expected a number below 2" in outcomes(classes)[1]
    assert open_source("tar", root=tmp_path, tar=DataTar(classes="imagenet"))[0].caption == "goldfish"


def test_a_class_list_has_one_class_a_line_and_no_gaps(tmp_path, caplog):
    def classes(content):
        (tmp_path / "classes.txt").write_bytes(content)
        return open_source("tar", root=tmp_path, tar=DataTar(classes="classes.txt")).class_names

    shard(tmp_path / "x.tar", [("a.png", photo(kind="PNG")), ("a.cls", b"1")])
    assert classes("\ufeffcat\u2028big\r\ndog\x0chot\rbird\n\n \n".encode()) == ("cat big", "dog hot", "bird")
    assert "one caption" not in caplog.text
    with pytest.raises(UserError, match="classes.txt with nothing in line 2; expected one class a line; "):
        classes(b"background\n\ncat\ndog\n")
    assert classes(b"crane, bird\ncrane, machine\n") == ("crane", "crane")
    assert "one caption for several classes: 'crane' of 'crane, bird', 'crane, machine'" in caplog.text


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_folders_and_hidden_files(tmp_path, tar_format):
    deep = "/".join(["folder" * 5] * 4)
    wide = deep if tar_format == tarfile.USTAR_FORMAT else f"{deep}/{'ü' * 120}"
    files = [("README", b"x"), *example(f"{wide}a", "one"), (f"{deep}/._a.jpg", b"mac"), *example(f"{wide}b", "two")]
    shard(tmp_path / "x.tar", files, tar_format)
    source = open_source("tar", root=tmp_path)
    assert outcomes(source) == ["one", "two"] and outcomes(open_source("tar", root=tmp_path)) == ["one", "two"]


def test_examples_that_are_bad_fail_alone(tmp_path):
    bad = {
        "a": ([("txt", b"x")], "0 images in an example (it has txt)"),
        "b": ([("jpg", photo()), ("png", photo()), ("txt", b"x")], "2 images in an example"),
        "c": ([("jpg", photo()[:80]), ("txt", b"x")], "cannot be decoded"),
        "d": ([("jpg", photo()), ("txt", b"\xff\xfe")], ".txt file that is not UTF-8"),
        "e": ([("jpg", photo()), ("json", b"{")], ".json file that is not JSON"),
        "f": ([("jpg", photo()), ("json", {"caption": ["y"]}), ("txt", b" ")], "without a caption"),
        "g": ([("jpg", b""), ("txt", b"x")], "not an image"),
        "h": ([("jpg", photo()), ("jpg", photo()), ("txt", b"x")], "two files .jpg"),
    }
    files = [(f"{key}.{ending}", content) for key, (ends, _) in bad.items() for ending, content in ends]
    shard(tmp_path / "x.tar", [*files, *example("z", "good")])
    *found, good = outcomes(open_source("tar", root=tmp_path))
    for reason, (_, expected) in zip(found, bad.values(), strict=True):
        assert expected in reason
    assert good == "good"


def test_what_a_broken_shard_still_holds_is_used_and_the_rest_is_one_failure(cc12m):
    path = cc12m / "00000.tar"
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        members = archive.getmembers()
    second = members[3].offset
    lost = "UserError: a tar shard that is broken or cut off from here on"
    for content, expected in (
        (whole[:second], ["a dog", lost]),  # nothing says that there was more but the missing end
        (whole[: second + 100], ["a dog", lost]),
        (whole[: members[3].offset_data + 10], ["a dog", "UserError: an example that is cut off", lost]),
        (whole[:second] + b"\7" * 512 + whole[second + 512 :], ["a dog", lost]),
        (whole[:second] + bytes(512) + whole[second + 512 :], ["a dog", lost]),  # a hole of a download
        (whole[:second] + bytes(2**24 + 512), ["a dog", lost]),  # one up to the end
        (whole + (cc12m / "00001.tar").read_bytes(), ["a dog", "a cat", lost]),  # `cat a.tar b.tar`
        (b"no tar at all" * 100, [lost]),
        (b"", [lost]),
    ):
        path.write_bytes(content)
        found = outcomes(open_source("tar", root=cc12m))
        assert len(found) == len(expected) + 1 and found[-1] == "a house"
        assert all(map(str.startswith, found, expected))


def test_padding_of_any_usual_length_ends_a_shard(cc12m):
    path = cc12m / "00000.tar"
    path.write_bytes(path.read_bytes().rstrip(b"\0") + bytes(2**20))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 512 * 512])
    assert outcomes(open_source("tar", root=cc12m)) == ["a dog", "a cat", "a house"]


def test_compressed_shards_are_told(cc12m, caplog):
    tar.warn_once.cache_clear()
    (cc12m / "00002.tar.gz").write_bytes(gzip.compress((cc12m / "00001.tar").read_bytes()))
    assert len(open_source("tar", root=cc12m)) == 3
    assert "1 compressed shards of" in caplog.text and "00002.tar.gz, are ignored; unpack them" in caplog.text
    with pytest.raises(UserError, match=r"00002.tar.gz is compressed; expected a plain tar"):
        open_source("tar", root=cc12m, labels=("00002.tar.gz",))
    for path in cc12m.glob("*.tar"):
        path.unlink()
    with pytest.raises(UserError, match=r"no example in \*.tar of .*; unpack 00002.tar.gz and so on"):
        open_source("tar", root=cc12m)
    shard(cc12m / "00003.tar", [("BZh.jpg", photo()), ("BZh.txt", b"a name that begins like bzip2")])
    assert len(open_source("tar", root=cc12m)) == 1


def test_keys_whose_files_are_scattered_and_pointers_stop_with_what_to_do(cc12m):
    files = example("a", "one"), example("b", "two")
    shard(cc12m / "00002.tar", [file for pair in zip(*files, strict=True) for file in pair])
    with pytest.raises(UserError, match="00002.tar has files of '/a' in two places; expected them side by side"):
        open_source("tar", root=cc12m)
    (cc12m / "00002.tar").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(UserError, match="00002.tar is a git-LFS pointer"):
        open_source("tar", root=cc12m)


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_any_damage_is_a_user_error_and_harms_no_other_shard(cc12m, tar_format):
    name = "ü" * 60
    path = shard(cc12m / "00000.tar", example(name, "a dog") + example(f"{name}b", "a cat"), tar_format)
    whole = path.read_bytes()
    chance = np.random.default_rng(0)
    for _ in range(60):
        damaged = np.frombuffer(whole, np.uint8).copy()
        places = chance.integers(0, len(damaged), size=chance.integers(1, 40))
        damaged[places] = chance.integers(0, 256, size=len(places))
        path.write_bytes(damaged[: chance.integers(1, len(damaged) + 1)].tobytes())
        try:
            assert outcomes(open_source("tar", root=cc12m))[-1] == "a house"
        except UserError as error:  # e.g. a name that became that of another key
            assert "in two places" in str(error)


@pytest.mark.parametrize("workers", [0, 1])
def test_annotate_counts_what_is_broken_by_its_reason(cc12m, tmp_path, workers):
    shard(cc12m / "00002.tar", [("a.jpg", photo()[:80]), ("a.txt", b"x")])
    (cc12m / "00000.tar").write_bytes((cc12m / "00000.tar").read_bytes()[:3600])
    config = default_config()
    config.data.source, config.data.root, config.annotate.segments = "tar", str(cc12m), ("text",)
    config.model.t5.vocabulary, config.latents.codebook_size = "emoji", 64
    config.annotate.image_size, config.annotate.num_workers = 8, workers
    config.data.tar.index = str(tmp_path / "indexes")
    [manifest] = annotate(validate(config), tmp_path / "out", load_tokenizer("emoji", 64)).values()
    assert manifest.num_records == 2 and manifest.left_out == 2
    assert manifest.source == {"name": "tar", "split": "", "image_size": 8, "caption": "caption"} | {
        "description": "description"  # and no folder of this machine
    }
    broken, undecodable = (f["reason"] for f in manifest.failures)
    assert broken.startswith("a tar shard that is broken") and undecodable.startswith("an image that cannot be decoded")
