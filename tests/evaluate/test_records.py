"""Measuring own data: scenes of emoji stand for somebody's pictures, random weights for a trained model."""

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kaleido_jax.config.codec import open_codec
from kaleido_jax.errors import UserError
from kaleido_jax.evaluate import protocols, records
from kaleido_jax.evaluate.features import efficientnet
from kaleido_jax.evaluate.features.extractor import Extractor
from kaleido_jax.evaluate.records_page import Shown, page
from kaleido_jax.latents.segments.bbox import Box
from kaleido_jax.latents.types import Latents
from kaleido_jax.models.kaleido import abstract_params, build_model
from kaleido_jax.sampling.pipeline import KaleidoPipeline
from kaleido_jax.sampling.tokens import SampledLatents
from kaleido_jax.train.batches import batches_of_all
from kaleido_jax.verbs import evaluate
from tests.emoji import make_records
from tests.tiny import single_net_config

HELD_OUT, TRAIN, SAMPLES = 13, 64, 52  # 13 fill one batch of 8 and a smaller one


def config_of(segments, folder, **changes):
    return single_net_config(
        **{
            "latents__segments": segments,
            "data__records": str(folder),
            "eval__protocol": "records",
            "eval__num_samples": SAMPLES,
            "sample__grammar": True,
        }
        | changes
    )


class Pretended(KaleidoPipeline):
    """Compiles nothing: its images are noise, its z those of the held-out records in turn."""

    def sample_latents(self, captions, *, seed, indices=None, sample=None, prefix=None):
        data = records.open_own_data(self, Path())
        z = [data.held_out[i % len(data.held_out)].latents for i in indices]
        return [SampledLatents(tokens=tuple(self.codec.encode(one)), latents=one) for one in z]

    def sample_images(self, captions, latents, *, seed, indices=None, sample=None):
        assert (latents is None) == (not self.config.latents.segments)
        rngs = [np.random.default_rng((seed, i)) for i in indices]
        return np.stack([rng.uniform(-1, 1, (8, 8, 3)).astype(np.float32) for rng in rngs])


def pipeline_of(config, kind=Pretended):
    rng, codec = np.random.default_rng(0), open_codec(config)
    shapes = abstract_params(build_model(config, codec.tokenizer.base_vocab_size))
    weights = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape) * 0.1, jnp.float32), shapes)
    return kind(config, weights, codec, step=7, chunk=26)


def brightness(params, model, config, batch, step):
    """In place of the loss: tells which pictures were in a batch."""
    found = {"loss_dm": (batch["image"].astype(np.float32)).mean()}
    return None, found | ({"loss_ar": batch["decoder_loss_weights"].sum()} if model.has_prior else {})


def tiny_extractor(px=2):
    """Means of squares."""

    def of(images):
        b, h, w, _ = images.shape
        return images.reshape(b, h // px, px, w // px, px, 3).mean((2, 4)).reshape(b, -1) / 255 + 0.01

    return Extractor(name=efficientnet.NAME, weights="0" * 16, resize="clean-fid 8", of=of)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own") / "records"
    codec = open_codec(config_of(("text", "bbox"), folder))
    make_records(
        folder,
        tokenizer=codec.tokenizer,
        num_examples=TRAIN,
        num_test=HELD_OUT,
        image_size=16,  # twice the model's
        segments=("text", "bbox"),
        coordinate_step=codec.coordinate_step,
    )
    return folder


@pytest.fixture(scope="module")
def models(folder):
    """The model and the baseline that workdirs hold."""
    return {
        "run": pipeline_of(config_of(("text", "bbox"), folder)),
        "base": pipeline_of(config_of((), folder)),
    }


@pytest.fixture
def places(tmp_path, models, monkeypatch):
    """Workdirs of the models, whose weights are never read, and how many images were sampled."""
    drawn = []
    for name, one in models.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(one.config.to_json())
    sample_images = Pretended.sample_images

    def counted(self, captions, latents, **options):
        drawn.append((self is models["base"], *options["indices"]))
        return sample_images(self, captions, latents, **options)

    monkeypatch.setattr(Pretended, "sample_images", counted)
    monkeypatch.setattr("kaleido_jax.train.watching.joint_loss", brightness)
    monkeypatch.setattr(KaleidoPipeline, "from_pretrained", lambda path, config=None: models[path.name])
    monkeypatch.setattr(records, "open_extractor", lambda name: tiny_extractor())
    return tmp_path, drawn


def test_the_report_has_model_baseline_and_ceiling_and_a_second_one_draws_nothing(places, models, capsys):
    folder, drawn = places
    config = models["run"].config
    report = protocols.measure(folder / "run", config, folder / "base")
    assert [sorted(i for one in drawn if one[0] == base for i in one[1:]) for base in (False, True)] == [
        list(range(SAMPLES))
    ] * 2
    for name in (
        "held_out_loss_dm",
        "train_loss_dm",
        "frechet",
        "recall",
        "few_kernel_distance",
        "few_coverage",
        "vendi",
    ):
        assert np.isfinite(report[name]) and np.isfinite(report["baseline"][name]), name
    assert "held_out_loss_ar" in report and "held_out_loss_ar" not in report["baseline"]
    assert report["latents_parsed"] == 1 and "latents_parsed" not in report["baseline"]
    # Real scenes are nearer to real scenes than noise is.
    assert report["real"]["few_kernel_distance"] < report["few_kernel_distance"]
    assert report["real"]["few_coverage"] > report["few_coverage"] and report["real"]["vendi"] > 1
    assert "labels" in report["left_out"]["boxes"] and "box_objects" not in report
    stamps = report["stamps"]
    assert stamps["model"]["num_samples"] == SAMPLES and stamps["few_real"]["num_samples"] == HELD_OUT
    assert {one["num_reference"] for one in stamps.values()} == {TRAIN}
    assert stamps["model"]["prior"] and not stamps["baseline"]["prior"]
    html = (folder / "run" / "eval" / "records.html").read_text()
    assert "L_DM, held-out, z of another" in html and "does not read z yet: train longer" in html
    assert "FID" not in html and "Frechet distance on efficientnet-lite0" in html
    assert not re.search(r"(src|href)=\"(?!data:)|url\(|<script", html)
    assert json.loads((folder / "run" / "eval" / "records.json").read_text()) == report

    drawn.clear()
    evaluate.run(config, folder / "run", baseline=folder / "base")
    out = capsys.readouterr().out
    assert not drawn and "this run" in out and "baseline" in out and "no boxes: the boxes come from labels" in out
    assert "records.html shows it" in out
    # Other numbers of the model alone need no new samples.
    alone = protocols.measure(folder / "run", config)
    assert not drawn and "baseline" not in alone and alone["frechet"] == report["frechet"]


def test_a_stopped_run_draws_only_what_is_missing(places, models, monkeypatch):
    folder, drawn = places
    monkeypatch.setattr(records, "PART", 26)
    whole = protocols.measure(folder / "run", models["run"].config)
    first, second = sorted((folder / "run" / "eval" / records.SAMPLES).rglob("*.npz"))
    second.unlink()
    (folder / "run" / "eval" / "records.json").unlink()
    drawn.clear()
    assert protocols.measure(folder / "run", models["run"].config) == whole
    assert [i for one in drawn for i in one[1:]] == list(range(26, SAMPLES)) and first.exists()


def test_what_cannot_be_measured_is_refused_in_one_line_before_anything_is_drawn(places, models, monkeypatch):
    folder, drawn = places
    config = models["run"].config
    few = dataclasses.replace(config, eval=dataclasses.replace(config.eval, num_samples=49))
    with pytest.raises(UserError, match="49 samples for protocol records; expected at least 50"):
        protocols.measure(folder / "run", few)
    with pytest.raises(UserError, match="a model with the latents text, bbox; expected one without"):
        protocols.measure(folder / "run", config, folder / "run")
    with pytest.raises(UserError, match="nowhere; expected the workdir"):
        protocols.measure(folder / "run", config, folder / "nowhere")
    emoji = dataclasses.replace(config, eval=dataclasses.replace(config.eval, protocol="emoji"))
    with pytest.raises(UserError, match="a baseline with config.eval.protocol = 'emoji'"):
        protocols.measure(folder / "run", emoji, folder / "base")
    with pytest.raises(UserError, match="--baseline beside --sweep"):
        evaluate.run(None, folder, sweep=("emoji", {}), baseline=folder / "base")
    monkeypatch.undo()
    monkeypatch.setattr(efficientnet.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"no weights of efficientnet-lite0.*kaleido_jax\[eval\]"):
        protocols.measure(folder / "run", config)
    assert not drawn and not (folder / "run" / "eval").exists()


@pytest.mark.parametrize("worse", [0, 3])  # a step for autoguidance, which is not read unless its config says so
def test_a_baseline_without_a_worse_model_is_refused_before_anything_is_drawn(places, models, monkeypatch, worse):
    folder, drawn = places
    run, base = models["run"], models["base"]
    guided = dataclasses.replace(run.config.sample, guidance="autoguidance", autoguidance_step=3)
    step = dataclasses.replace(base.config.sample, autoguidance_step=worse)
    monkeypatch.setattr(run, "config", dataclasses.replace(run.config, sample=guided))
    monkeypatch.setattr(base, "config", dataclasses.replace(base.config, sample=step))
    said = "reads no worse model" if worse else "'autoguidance' without a worse model"
    with pytest.raises(UserError, match=f"--baseline=.*base, for which .*{said}; expected .*guidance=cfg"):
        protocols.measure(folder / "run", run.config, folder / "base")
    assert not drawn and not (folder / "run" / "eval").exists()


def test_a_baseline_without_the_models_micro_conditions_is_refused(places, models, monkeypatch):
    folder, drawn = places
    run = models["run"]
    net = dataclasses.replace(run.config.model.denoiser, micro=(("scale", 8.0),))
    changes = {"sample": dataclasses.replace(run.config.sample, micro=(("scale", 4.0),))}
    changes["model"] = dataclasses.replace(run.config.model, denoiser=net)
    monkeypatch.setattr(run, "config", dataclasses.replace(run.config, **changes))
    with pytest.raises(UserError, match="base, for which config.sample.micro has 'scale'; expected one that samples"):
        protocols.measure(folder / "run", run.config, folder / "base")
    assert not drawn


def test_a_baseline_of_other_records_is_refused(places, models, tmp_path):
    folder, drawn = places
    codec = models["run"].codec
    other = tmp_path / "other"
    steps = {"coordinate_step": codec.coordinate_step, "segments": ("text", "bbox"), "image_size": 16}
    make_records(other, tokenizer=codec.tokenizer, num_examples=8, **steps)
    config = config_of((), other)
    (folder / "base" / "config.json").write_text(config.to_json())
    with pytest.raises(
        UserError, match=r"--baseline=.*base with other records \(.*other/train\); expected the model's"
    ):
        protocols.measure(folder / "run", models["run"].config, folder / "base")
    assert not drawn


def test_without_held_out_pictures_the_rest_is_measured(folder, models):
    """Records of one split, as `annotate` makes of a folder without a held-out share."""
    pipeline = models["run"]
    config = dataclasses.replace(
        pipeline.config, data=dataclasses.replace(pipeline.config.data, records=str(folder / "train"))
    )
    data = records.open_own_data(KaleidoPipeline(config, pipeline.params, pipeline.codec), folder)
    assert data.held_out is None and len(data.train) == TRAIN
    assert data.captions(3) == [data.train[i].caption for i in (0, TRAIN // 3, 2 * TRAIN // 3)]


# ---------------------------------------------------------------------------------------------- parts
def test_losses_are_of_each_record_once_whatever_the_batch(folder, models):
    pipeline = models["run"]
    data = records.open_own_data(pipeline, folder)
    batches = list(batches_of_all(pipeline.config, data.held_out, pipeline.codec))
    assert [len(batch["image"]) for batch in batches] == [8, 5]
    tokens = np.concatenate([batch["encoder_input_tokens"] for batch in batches])
    captions = [data.held_out[i].caption_tokens for i in range(HELD_OUT)]
    assert [row[row > 1].tolist() for row in tokens] == captions
    few = data.held_out.select([3, 1])
    assert len(few) == 2 and few[0].id == data.held_out[3].id and few.select([1])[0].id == data.held_out[1].id
    lengths = data.held_out.latents_lengths(pipeline.codec)
    assert few.latents_lengths(pipeline.codec).tolist() == lengths[[3, 1]].tolist()
    with pytest.raises(IndexError):
        few[2]


def test_losses_are_means_over_the_samples_of_each_split(models, folder, monkeypatch):
    pipeline = models["run"]
    data = records.open_own_data(pipeline, folder)
    monkeypatch.setattr("kaleido_jax.train.watching.joint_loss", brightness)
    found = records.losses_of(pipeline, data)
    evenly = [i * TRAIN // HELD_OUT for i in range(HELD_OUT)]
    for split, part in (("held_out", data.held_out), ("train", data.train.select(evenly))):
        pixels = np.concatenate([one["image"] for one in batches_of_all(pipeline.config, part, pipeline.codec)])
        assert found[f"{split}_loss_dm"] == pytest.approx(float(pixels.mean()), rel=1e-4)
    assert found["held_out_loss_dm"] != pytest.approx(found["train_loss_dm"], rel=1e-3)


@pytest.mark.parametrize("batch_size", [8, 1])  # alone in its batch too, a row gets another's z
def test_the_other_z_is_that_of_another_image_and_all_else_stays(models, folder, monkeypatch, caplog, batch_size):
    pipeline, train = models["run"], dataclasses.replace(models["run"].config.train, batch_size=batch_size)
    monkeypatch.setattr(pipeline, "config", dataclasses.replace(pipeline.config, train=train))
    data = records.open_own_data(pipeline, folder)

    def of_pairs(params, model, config, batch, step):
        """In place of the loss: tells which image had which z."""
        tokens = batch["decoder_target_tokens"].sum(-1).astype(np.float32)
        own = batch["image"].astype(np.float32).mean((1, 2, 3)) * 1e3
        return None, {"loss_dm": (own * tokens).mean(), "loss_ar": tokens.mean()}

    monkeypatch.setattr("kaleido_jax.train.watching.joint_loss", of_pairs)
    found = records.losses_of(pipeline, data)
    batches = list(batches_of_all(pipeline.config, data.held_out, pipeline.codec))
    tokens = np.concatenate([batch["decoder_target_tokens"].sum(-1) for batch in batches])
    pixels = np.concatenate([batch["image"].astype(np.float32).mean((1, 2, 3)) * 1e3 for batch in batches])
    for name, by in (("held_out_loss_dm", 0), ("held_out_loss_dm_other_z", 1)):
        assert found[name] == pytest.approx((pixels * np.roll(tokens, by)).mean(), rel=1e-3)
    assert found["held_out_loss_dm_other_z"] != pytest.approx(found["held_out_loss_dm"], rel=1e-4)
    alone = records.losses_of(pipeline, dataclasses.replace(data, held_out=data.held_out.select([0])))
    assert "held_out_loss_dm" in alone and "held_out_loss_dm_other_z" not in alone
    assert "of one record there is no other z" in caplog.text
    monkeypatch.setattr("kaleido_jax.train.watching.joint_loss", brightness)
    base = records.losses_of(models["base"], records.open_own_data(models["base"], folder))
    assert "held_out_loss_dm" in base and "held_out_loss_dm_other_z" not in base


@pytest.mark.slow
def test_a_model_of_random_weights_is_measured(folder, tmp_path, monkeypatch):
    """Sampling and losses by the networks themselves."""
    pipeline = pipeline_of(config_of(("text", "bbox"), folder), KaleidoPipeline)
    monkeypatch.setattr(KaleidoPipeline, "from_pretrained", lambda path, config=None: pipeline)
    monkeypatch.setattr(records, "open_extractor", lambda name: tiny_extractor())
    report = protocols.measure(tmp_path, pipeline.config)
    assert report["held_out_loss_dm"] > 0 and report["train_loss_ar"] > 1 and report["latents_parsed"] == 1
    assert report["real"]["few_kernel_distance"] < report["few_kernel_distance"]


class Captions(records.Records):
    """Records of which only the captions are known."""

    def __init__(self, captions):
        self._captions = captions

    def __len__(self):
        return len(self._captions)

    def __getitem__(self, index):
        return SimpleNamespace(caption=self._captions[index])


@pytest.mark.parametrize(
    ("held_out", "expected"),
    [
        ("bb", "bbaabbccdd"),  # classes: each of training occurs, also those of which nothing is held out
        ("ef", "efefefefef"),  # captions of their own, which are the better test
        ("", "abcdabcdab"),
    ],
)
def test_samples_have_the_held_out_captions_and_no_class_is_missing(held_out, expected):
    train = Captions(list("abcd" if not held_out else "aabbccdd"))
    data = records.OwnData(train=train, held_out=Captions(list(held_out)) if held_out else None, fingerprint="")
    assert "".join(data.captions(10)) == expected
    assert "".join(data.captions(2)) == (expected[:2] if held_out else "ac")


@pytest.mark.parametrize(("px", "features", "measured"), [(2, 48, False), (4, 12, True)])
def test_a_frechet_distance_of_fewer_pictures_than_features_is_left_out(
    px, features, measured, places, models, monkeypatch
):
    folder, _ = places
    monkeypatch.setattr(records, "open_extractor", lambda name: tiny_extractor(px))
    report = protocols.measure(folder / "run", models["run"].config, folder / "base")
    for one in (report, report["baseline"], report["real"]):
        assert ("few_frechet" in one) == measured and "few_kernel_distance" in one
    assert "frechet" in report and "frechet" in report["baseline"]
    html = (folder / "run" / "eval" / "records.html").read_text()
    reason = f"a Frechet distance of {HELD_OUT} pictures on {features} features is larger for real pictures"
    assert (reason in html) == (reason in report["left_out"].get("few_frechet", "")) == (not measured)


def test_z_that_training_records_have_are_counted(models, folder):
    pipeline = models["run"]
    data, codec = records.open_own_data(pipeline, folder), pipeline.codec
    train = data.train.select(range(3))
    other = train[0].latents.replace(text="something else")
    z = [SampledLatents(tokens=(), latents=one) for one in (train[0].latents, train[2].latents, other, None)]
    assert records.copied(z, train, codec) == {"latents_copied": pytest.approx(2 / 3)}
    assert records.copied(z[2:], train, codec) == {"latents_copied": 0}
    assert records.copied(z[3:], train, codec) == {}


def test_z_are_looked_up_in_all_training_records_also_in_those_without_features(places, models, monkeypatch):
    folder, _ = places
    pipeline = models["run"]
    train = records.open_own_data(pipeline, folder).train
    unseen = [i for i in range(TRAIN) if i not in records.spread(range(TRAIN), 50)]
    given = [train[i].latents for i in unseen]
    z = [SampledLatents(tokens=tuple(pipeline.codec.encode(one)), latents=one) for one in given]
    monkeypatch.setattr(records, "MOST_REFERENCE", 50)
    monkeypatch.setattr(
        Pretended, "sample_latents", lambda self, captions, *, indices, **_: [z[i % len(z)] for i in indices]
    )
    report = protocols.measure(folder / "run", pipeline.config)
    assert report["counts"]["reference"] == 50 and report["latents_copied"] == 1


def test_a_damaged_training_record_is_told_and_the_others_are_looked_up(models, folder, monkeypatch, caplog):
    train, codec = records.open_own_data(models["run"], folder).train, models["run"].codec
    z = [SampledLatents(tokens=(), latents=train[i].latents) for i in (0, 1)]
    read = records.Records.training_record

    def damaged(self, index):
        if index == 0:
            raise UserError("record 0 is damaged")
        return read(self, index)

    monkeypatch.setattr(records.Records, "training_record", damaged)
    assert records.copied(z, train, codec) == {"latents_copied": 0.5}
    assert "record 0 is damaged" in caplog.text


def test_damaged_pictures_are_told_and_left_out_as_in_training(models, folder, monkeypatch, caplog):
    data = records.open_own_data(models["run"], folder)
    read = records.Records.__getitem__

    def damaged(self, index):
        if index == 0:
            raise UserError("record 0 is damaged")
        record = read(self, index)
        return dataclasses.replace(record, image=record.image[:40]) if index == 1 else record

    monkeypatch.setattr(records.Records, "__getitem__", damaged)
    real = records.real_of(data.held_out, HELD_OUT)
    assert len(real.pixels) == len(real.records) == HELD_OUT - 2
    assert "record 0 is damaged" in caplog.text and "is damaged (" in caplog.text
    assert len(data.captions(5)) == 5
    with pytest.raises(UserError, match="2 records, all damaged"):
        records.real_of(data.held_out.select([0, 1]), 2)


class Seeing:
    """A detector that sees the same boxes in every image."""

    segments, needs, sees, metadata = ("bbox",), (), "view", {}

    def __init__(self, *boxes):
        self.boxes = tuple(Box("thing", box) for box in boxes)

    def __call__(self, examples, so_far):
        return [Latents(bbox=self.boxes) for _ in examples]


def test_boxes_agree_as_far_as_the_detector_sees_them(monkeypatch):

    measure = records.box_agreement
    z = [
        Latents(bbox=(Box("a", (0, 0, 500, 500)), Box("b", (600, 600, 900, 900)))),
        Latents(bbox=(Box("a", (0, 0, 500, 250)),)),
        None,
        Latents(bbox=()),
    ]
    found = measure(Seeing((0, 0, 500, 500)), np.zeros((4, 8, 8, 3), np.uint8), z)
    assert found == {"box_objects": 3, "box_found": 0.6667, "box_iou_median": 0.75, "box_half": pytest.approx(2 / 3)}
    assert measure(Seeing(), np.zeros((1, 8, 8, 3), np.uint8), z[2:3]) == {"box_objects": 0}


def test_diversity_compares_equal_numbers_of_samples_and_real_pictures():
    rng = np.random.default_rng(0)
    rows = {"model": np.ones((9, 4), np.float32)}  # collapsed
    captions = ["a"] * 4 + ["b"] * 4 + ["c"]
    real = rng.normal(size=(6, 4)).astype(np.float32)
    found, reason = records.diversity(rows, captions, real, ["a", "a", "a", "b", "c", "c"])
    assert reason == "" and found["model"]["vendi"] == pytest.approx(1) and found["real"]["vendi"] > 1.1
    assert found["model"]["diversity_images"] == found["real"]["diversity_images"] == 3  # only "a" has several of both
    alone, reason = records.diversity(rows, captions, real, list("abcdef"))
    assert "real" not in alone and "stand alone" in reason and alone["model"]["diversity_images"] == 4
    assert records.diversity(rows, list("abcdefghi"), real, list("abcdef"))[0] == {}


def test_the_page_escapes_captions_and_shows_why_a_z_does_not_parse():
    image = np.zeros((8, 8, 3), np.uint8)
    shown = Shown(
        caption='<b>"__STAMPS__"',
        real=[],
        samples={"model": [image, image, image]},
        z=[
            SampledLatents(tokens=(3, 1), latents=None, problem="no <eos>"),
            SampledLatents(tokens=(3, 1), latents=Latents(text="a & b")),
            SampledLatents(tokens=(3, 1), latents=Latents(bbox=(Box("c", (0, 0, 500, 500)),))),
        ],
    )
    stamp = {"protocol": "records", "extractor": "efficientnet-lite0", "weights": "0", "resize": "clean-fid 8", "k": 3}
    stamp |= {"reference": "r", "split": "train", "num_reference": 64, "num_samples": 52, "checkpoint": "c"}
    stamp |= {"prior": "", "sampler": "ddpm", "num_steps": 2, "guidance": "cfg", "gamma": 2.0, "seeds": [0, 0]}
    report = {
        "of": {"num_samples": 52, "sample": {"gamma": 2.0, "num_steps": 2, "sampler": "ddpm"}},
        "counts": {"training_records": 64, "held_out_records": 0, "reference": 64, "few": 0, "captions": 2},
        "frechet": 12.345,
        "real": {},
        "left_out": {"ceiling": "0 held-out pictures", "boxes": "the boxes come from labels"},
        "stamps": {"model": stamp},
    }
    html = page(report, [shown], "mine & yours")
    assert "&lt;b&gt;&quot;__STAMPS__&quot;" in html and "no &lt;eos&gt;" in html and "mine &amp; yours" in html
    # A z that shows nothing stands below its sample, another one beside it.
    assert html.count("<img ") == 2 and html.count("<image ") == 2
    assert "12.3" in html and "Left out: 0 held-out pictures." in html and "nothing was held out" in html
    assert '<th scope="col">baseline</th>' not in html
