"""init on small data sets: the config fits, and the verbs that follow it run."""

import dataclasses
import json
import re

import numpy as np
import pytest
from PIL import Image

from kaleido_jax.config import load_config
from kaleido_jax.config.codec import open_codec
from kaleido_jax.config.load import base_config
from kaleido_jax.config.stored import open_workdir
from kaleido_jax.data.records import Records, open_records, read_manifest
from kaleido_jax.errors import UserError
from kaleido_jax.intake.choose import EPOCHS, Wishes, choose
from kaleido_jax.intake.recognize import recognize
from kaleido_jax.intake.survey import survey
from kaleido_jax.latents.tokenizer import load_tokenizer
from kaleido_jax.main import main
from tests.data.sources.opening import photo, write

CLASSES = ("Käfer", "red fox")


def picture(path, seed, size=(48, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    tones = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), np.uint8)
    Image.fromarray(tones).resize(size).save(path)


def album(folder, each=20):
    for number, name in enumerate(CLASSES):
        for i in range(each):
            picture(folder / name / f"Bild {i}.jpg", 100 * number + i)
    return folder


def init(data, workdir, *flags):
    main(["init", f"--data={data}", f"--workdir={workdir}", *flags])
    return load_config(workdir / "config.py")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("own")
    data = album(root / "my pictures")
    (data / ".DS_Store").write_bytes(b"\0")
    (data / "red fox" / "broken.jpg").write_bytes((data / "red fox" / "Bild 0.jpg").read_bytes()[:200])
    photo(data / "red fox" / "strip.png", 400, 10)
    init(data, root / "run")
    return data, root / "run"


def test_the_config_fits_the_pictures(made):
    data, workdir = made
    config = load_config(workdir / "config.py")
    assert (config.data.source, config.data.root, config.name) == ("folder", str(data), "my pictures")
    assert config.latents.segments == config.annotate.segments == ("text", "voken")
    assert config.sample.captions == CLASSES and config.annotate.held_out_share == 0.15
    assert config.eval.protocol == "records" and config.eval.num_samples >= 50
    assert config.model.t5.vocabulary == str(workdir / "spiece.model")
    codec = open_codec(config)
    for name in CLASSES:  # an umlaut stays, and each word is one piece
        assert codec.tokenizer.decode(codec.tokenizer.encode(name)) == name
        assert len(codec.tokenizer.encode(name)) == len(name.split())


def test_the_file_is_short_and_names_what_differs(made):
    data, workdir = made
    text = (workdir / "config.py").read_text()
    assignments = [line for line in text.splitlines() if line.startswith("    config.")]
    assert len(assignments) <= 12 and 'base_config("own_pictures:32")' in text
    assert all(len(line) <= 120 for line in text.splitlines() if str(data.parent) not in line)


def test_what_was_found_is_told(made, capsys, tmp_path):
    data, _ = made
    init(data, tmp_path / "again")
    out = capsys.readouterr().out
    for words in (
        "one folder for each class, 42 images",
        "2 classes: Käfer 20, red fox 22",
        "1 x narrow: the square crop keeps less than a quarter (e.g. folder/red fox/strip.png, 400 x 10 px)",
        "1 x an image that cannot be decoded",
        "folder/red fox/broken.jpg",
        "files of other kinds are ignored: .DS_Store",
        "images/s follow from a measured rate",
        "900 steps, which see each picture 400 times",  # of 42, 15 % are held out
        f"annotate --workdir={tmp_path / 'again'}",
    ):
        assert words in out


def test_annotating_needs_the_workdir_alone_and_leaves_out_only_what_init_told(made):
    _, workdir = made
    main(["annotate", f"--workdir={workdir}"])
    manifests = [read_manifest(path.parent) for path in workdir.rglob("manifest.json")]
    assert sum(m.num_records for m in manifests) == 41 and sum(m.left_out for m in manifests) == 1
    config = load_config(workdir / "config.py")
    for manifest in manifests:
        assert manifest.max_tokens["caption"] <= config.data.max_caption_tokens
        assert manifest.max_tokens["text | voken"] <= config.latents.max_latents_tokens


def test_nothing_is_overwritten(made):
    data, workdir = made
    before = (workdir / "config.py").read_text()
    with pytest.raises(UserError, match="config.py exists; expected a workdir without a config; use it, remove it"):
        init(data, workdir)
    assert (workdir / "config.py").read_text() == before


def test_a_workdir_with_a_stored_config_is_refused(made, tmp_path):
    data, workdir = made
    open_workdir(load_config(workdir / "config.py"), tmp_path / "trained")
    with pytest.raises(UserError, match="config.json exists"):
        init(data, tmp_path / "trained")


REFUSED = {
    "no data": (["--data=/none"], "--data=/none; expected a folder"),
    "size": (["--image_size=48"], "--image_size=48; expected 32 or 64"),
    "model": (["--detector=/none.onnx"], "no file /none.onnx; expected an ONNX model"),
    "masks": (["--masks=/none.onnx"], "--masks without --detector"),
    "columns": (["--columns=image"], "expected IMAGE,CAPTION"),
    "segment": (["--segments=text,bbox"], "--segments with bbox; expected images with such labels"),
    "order": (["--segments=voken,text"], "in this order"),
    "twice": (["--segments=text,text"], "--segments=text,text; expected text, once each"),
    "no segment": (["--segments=,"], "--segments=,; expected names, e.g. text,voken"),
    "no pixel": (["--image_size=0"], "--image_size=0; expected 32 or 64"),
    "no minute": (["--minutes=0"], "--minutes=0; expected more than 0"),
    "no number": (["--minutes=nan"], "--minutes=nan; expected"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_before_anything_is_written(case, made, tmp_path):
    data, _ = made
    flags, message = REFUSED[case]
    with pytest.raises(UserError) as error:
        init(data, tmp_path / "w", *flags)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "w").exists()


def test_a_segment_that_is_none_is_refused_before_anything_is_read(made, tmp_path, capsys):
    with pytest.raises(UserError, match="segment 'box'; expected one of text, .*; did you mean 'bbox'?"):
        init(made[0], tmp_path / "w", "--segments=text,box")
    assert not capsys.readouterr().out and not (tmp_path / "w").exists()


def test_a_few_pictures_are_too_few(tmp_path):
    with pytest.raises(UserError, match="8 images that can be used; expected 24 at least"):
        init(album(tmp_path / "data", each=4), tmp_path / "w")
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("content", ["version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "no image"])
def test_pictures_none_of_which_can_be_used_are_refused_with_the_reason(content, tmp_path):
    for i in range(3):
        write(tmp_path / "data" / "cat" / f"{i}.jpg", content)
    reason = "git-LFS pointer" if "lfs" in content else "bytes that are not an image"
    with pytest.raises(UserError, match=rf"^none of 3 images of .*data can be used \([^\n]*{reason}[^\n]*\); expected"):
        init(tmp_path / "data", tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_text_files_that_come_later_are_annotated_too_and_changed_ones_are_told(tmp_path):
    data, workdir = tmp_path / "data", tmp_path / "w"
    for i in range(30):
        picture(data / f"{i}.jpg", i)
        write(data / f"{i}.txt", f"a Käfer number {'abc'[i % 3]}")
    config = init(data, workdir)
    assert config.data.source == "text_files"

    def annotated():
        main(["annotate", f"--workdir={workdir}"])
        codec, size = open_codec(config), 32
        paths = workdir.rglob("manifest.json")
        return sorted(r.caption for path in paths for r in open_records(path.parent, codec=codec, image_size=size))

    assert len(before := annotated()) == 30
    picture(data / "30.jpg", 30)
    write(data / "30.txt", "a new Käfer")
    assert sorted([*before, "a new Käfer"]) == annotated()
    write(data / "0.txt", "another Käfer")
    with pytest.raises(UserError, match=r"not what was annotated .*text_files/0\.jpg"):
        annotated()


def test_captions_that_no_vocabulary_can_be_trained_on_cost_their_own_images_alone(tmp_path):
    for i, caption in enumerate(["▅", "a red ▅ fox", "word and other things " * 300] + ["a red fox"] * 27):
        picture(tmp_path / "data" / f"{i:02}.jpg", i)
        write(tmp_path / "data" / f"{i:02}.txt", caption)
    config = init(tmp_path / "data", tmp_path / "w")
    assert len(open_codec(config).tokenizer.encode("a red fox")) == 3
    main(["annotate", f"--workdir={tmp_path / 'w'}"])
    manifests = [read_manifest(p.parent) for p in (tmp_path / "w").rglob("manifest.json")]
    assert sum(m.num_records for m in manifests) == 29
    assert [f["id"] for m in manifests for f in m.failures] == ["text_files/00.jpg"]


def test_captions_that_look_the_same_are_one_caption_from_survey_to_records(tmp_path):
    spellings = ("un café rouge", "un\xa0café rouge", "un cafe\u0301\nrouge")
    for i in range(30):
        picture(tmp_path / "data" / f"{i}.jpg", i)
    rows = [json.dumps({"image": f"{i}.jpg", "caption": spellings[i % 3]}) for i in range(30)]
    write(tmp_path / "data" / "captions.jsonl", "\n".join(rows))
    config = init(tmp_path / "data", tmp_path / "w")
    assert config.sample.captions == (spellings[0],)
    main(["annotate", f"--workdir={tmp_path / 'w'}"])
    folder = tmp_path / "w" / "records" / "train"
    made = list(Records(folder, read_manifest(folder)))
    assert {(record.caption, record.latents.text) for record in made} == {(spellings[0], spellings[0])}
    assert {len(record.caption_tokens) for record in made} == {3} and "unknown" not in read_manifest(folder).tally


def test_a_class_whose_folder_has_its_accents_apart_is_counted_under_its_caption(tmp_path):
    for i in range(30):
        picture(tmp_path / "data" / ("Ka\u0308fer", "red fox")[i % 2] / f"{i}.jpg", i)
    assert init(tmp_path / "data", tmp_path / "w").sample.captions == CLASSES
    main(["annotate", f"--workdir={tmp_path / 'w'}"])
    manifest = read_manifest(tmp_path / "w" / "records" / "train")
    assert manifest.class_names == list(CLASSES) == list(manifest.tally["classes"])


def coco(folder, number, with_objects, with_captions):
    """COCO's JSON of some pictures: the first ones have a box with a mask each, the last ones captions."""
    images, annotations = [], []
    for i in range(number):
        picture(folder / "images" / f"{i}.jpg", i)
        captions = [f"a thing {'abc'[i % 3]}", "a longer text of it"] if i >= number - with_captions else []
        images.append({"id": i, "file_name": f"{i}.jpg", "captions": captions})
        box = [8, 8, 20, 20]
        outline = [[8, 8, 28, 8, 28, 28, 8, 28]]
        if i < with_objects:
            annotations.append({"id": i, "image_id": i, "category_id": 1, "bbox": box, "segmentation": outline})
    labels = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "blue thing"}]}
    write(folder / "annotations.json", json.dumps(labels))


def test_images_without_a_label_that_was_asked_for_are_told_and_counted_out(tmp_path, capsys):
    coco(tmp_path / "data", 50, with_objects=40, with_captions=36)
    config = init(tmp_path / "data", tmp_path / "w")
    out = capsys.readouterr().out
    assert config.latents.segments == ("text", "voken") and "  36 of 50 images have text; the others will be" in out
    assert "  boxes in 80% of the images; with the segment bbox (--segments) the others are left out\n" in out
    wish = "--segments=text,bbox,blob,voken"
    boxed = init(tmp_path / "data", tmp_path / "v", wish)
    assert "  26 of 50 images have text, bbox, blob; the others will be left out\n" in capsys.readouterr().out
    assert boxed.train.num_steps * 16 <= EPOCHS * 26 < config.train.num_steps * 16
    coco(tmp_path / "less", 50, with_objects=30, with_captions=36)
    with pytest.raises(UserError, match="^16 images that have all of text, bbox, blob; expected 24 at least, better"):
        init(tmp_path / "less", tmp_path / "u", wish)
    assert not (tmp_path / "u").exists()


@pytest.mark.parametrize(("images", "share"), [(24, 0.15), (200, 0.1), (399, 0.05), (5_000, 0.05)])
def test_of_few_pictures_a_larger_share_is_held_out(images, share, tmp_path):
    found = recognize(album(tmp_path / "data"))
    seen = dataclasses.replace(survey(found, max_boxes=3, show=False), num_images=images)
    assert choose(found, seen, Wishes(), accelerated=False).fields["annotate.held_out_share"] == share


def test_boxes_and_masks_that_the_data_have_become_segments(tmp_path):
    coco(tmp_path / "data", 30, with_objects=30, with_captions=30)
    config = init(tmp_path / "data", tmp_path / "w")
    assert config.latents.segments == ("text", "bbox", "blob", "voken")
    assert len(open_codec(config).tokenizer.encode("blue thing")) == 2
    main(["annotate", f"--workdir={tmp_path / 'w'}"])
    manifests = [read_manifest(p.parent) for p in (tmp_path / "w").rglob("manifest.json")]
    assert sum(m.num_records for m in manifests) == 30
    assert config.latents.max_latents_tokens - max(m.max_tokens["text | bbox | blob | voken"] for m in manifests) < 8
    assert init(tmp_path / "data", tmp_path / "v", "--segments=text").latents.segments == ("text",)


def test_images_without_a_caption_are_told_before_and_after_annotating(tmp_path, capsys):
    images, annotations = [], []
    for i in range(30):
        picture(tmp_path / "data" / "images" / f"{i}.jpg", i)
        images.append({"id": i, "file_name": f"{i}.jpg"})
        annotations.append({"id": i, "image_id": i, "category_id": 1, "bbox": [8, 8, 20, 20]})
    labels = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    write(tmp_path / "data" / "annotations.json", json.dumps(labels))
    config = init(tmp_path / "data", tmp_path / "w")
    assert config.latents.segments == ("bbox", "voken")
    told = capsys.readouterr().out
    assert "30 of 30 images have no caption: a model of such images cannot be told what to draw" in told
    assert "the longest caption has 1 token (" in told
    main(["annotate", f"--workdir={tmp_path / 'w'}"])
    [held_out] = re.findall(r"test: (\d+) record", told := capsys.readouterr().out)
    assert f"{30 - int(held_out)} images without a caption: a model of such images cannot be told" in told


def test_names_with_quotes_and_line_ends_cannot_break_the_file(tmp_path):
    odd = 'a "b" \\ \n\'c\' """'
    data = album(tmp_path / odd)
    config = init(data, tmp_path / 'w "1"')
    assert config.data.root == str(data)


def test_class_names_that_annotating_finds_beside_a_detector_are_words_of_the_vocabulary(tmp_path):
    write(tmp_path / "weights" / "coco2.names", "traffic light\nsofa (large)\n")
    found = recognize(album(tmp_path / "data"))
    wishes = Wishes(detector=str(tmp_path / "weights" / "yolox.onnx"))
    choice = choose(found, survey(found, max_boxes=3, show=False), wishes, accelerated=False)
    (tmp_path / "spiece.model").write_bytes(choice.vocabulary)
    tokenizer = load_tokenizer(str(tmp_path / "spiece.model"), 64)
    assert len(tokenizer.encode("traffic light")) == len(tokenizer.encode("sofa large")) == 2
    boxes = ["traffic light (100, 100, 100, 100)"] * base_config(choice.base).annotate.bbox.max_boxes
    assert choice.fields["latents.max_latents_tokens"] > len(tokenizer.encode(" ".join(boxes)))


@pytest.mark.parametrize("variant", ["32", "64", "32-accelerator", "64-accelerator"])
def test_every_variant_of_the_base_is_a_config(variant):
    config = load_config(f"own_pictures:{variant}")
    assert config.model.denoiser.image_size == int(variant.partition("-")[0])
    assert config.eval.protocol == "none" and config.annotate.segments == config.latents.segments
    assert base_config(f"own_pictures:{variant}").train.batch_size == (256 if "acc" in variant else 16)


@pytest.mark.parametrize(("side", "base"), [(48, "own_pictures:32-accelerator"), (80, "own_pictures:64-accelerator")])
def test_an_accelerator_gets_larger_batches_and_pictures_but_no_more_epochs(side, base, tmp_path):
    for i in range(30):
        picture(tmp_path / "cat" / f"{i}.png", i, (side, side + 10))
    found = recognize(tmp_path)
    seen = survey(found, max_boxes=3, show=False)
    choice = choose(found, seen, Wishes(), accelerated=True)
    config = base_config(base)
    assert choice.base == base
    assert choice.fields["train.num_steps"] * config.train.batch_size <= max(EPOCHS * 30, 100 * config.train.batch_size)
    assert choose(found, seen, Wishes(), accelerated=False).base == "own_pictures:32"
    longer, shorter = (choose(found, seen, Wishes(minutes=m), accelerated=False) for m in (4, 2))
    assert longer.fields["train.num_steps"] > shorter.fields["train.num_steps"]
    assert abs(longer.minutes - 4) < 0.5 and longer.measured_on == "one core of an AMD EPYC"
