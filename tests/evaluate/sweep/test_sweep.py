"""A sweep on models that pretend: one draws real scenes, one has collapsed to one scene for each caption."""

import dataclasses
import json
import re
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image

from kaleido_jax.config.load import load_config
from kaleido_jax.config.schema import Diffusion, Sample
from kaleido_jax.config.sweep import Sweep, SweptModel, SweptRule, load_sweep, settings
from kaleido_jax.errors import UserError
from kaleido_jax.evaluate import sets
from kaleido_jax.evaluate.features.extractor import reader_extractor
from kaleido_jax.evaluate.sets import SetProtocol
from kaleido_jax.evaluate.sprite_reader import open_reader
from kaleido_jax.evaluate.sweep import cells, drawing
from kaleido_jax.evaluate.sweep import run as running
from kaleido_jax.evaluate.sweep.drawing import Drawn, draw
from kaleido_jax.evaluate.sweep.figure import curves_shown, write_figure
from kaleido_jax.evaluate.sweep.run import SweepRun, sampler_text
from kaleido_jax.evaluate.sweep.summary import claim, markdown, summarize
from kaleido_jax.main import parse_flags
from kaleido_jax.verbs import VERBS
from tests.evaluate.scenes import SIZE, PretendedModel
from tests.tiny import single_net_config

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NUMBER = 80
SWEEP = Sweep(
    name="pretended",
    protocol="tiny",
    models=(
        SweptModel(name="baseline", paths=("emoji-tiny-baseline",)),
        SweptModel(name="Kaleido", paths=("emoji-tiny",)),
    ),
    rules=(
        SweptRule(name="CFG"),
        SweptRule(name="interval", tried=(("guidance_interval=(0.8,9)",), ("guidance_interval=(0.3,9)",))),
    ),
    gammas=(1.0, 4.0),
    num_samples=NUMBER,
    num_reference=NUMBER,
    tune_samples=20,
    shown=4,
)


@pytest.fixture(autouse=True)
def pretending(monkeypatch):
    """The models that were opened; samples are drawn in parts of 20."""
    protocol = SetProtocol(
        extractors=("sprite-reader",), resize="means", num_samples=NUMBER, num_reference=NUMBER, num_neighbors=NUMBER
    )
    monkeypatch.setitem(sets.SET_PROTOCOLS, "tiny", protocol)
    monkeypatch.setattr(drawing, "PART", 20)
    opened = []

    def open_model(model, training, worse_step, chunk):
        opened.append(PretendedModel(collapsed=model.name == "baseline"))
        return opened[-1]

    monkeypatch.setattr(running, "open_model", open_model)
    return opened


def sampled(opened):
    return sum(len(model.sampled) for model in opened)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished sweep, made by the first test that wants it."""
    return tmp_path_factory.mktemp("finished")


@pytest.fixture
def result(finished):
    return SweepRun(SWEEP, finished).run()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")
def test_names_of_axes_end_where_the_chart_does_on_a_phone(result, finished):
    playwright = pytest.importorskip("playwright.sync_api")
    ends = "(e) => { const t = e.getBoundingClientRect(), c = e.ownerSVGElement.getBoundingClientRect();"
    ends += " return Math.min(t.left - c.left, c.right - t.right, t.top - c.top, c.bottom - t.bottom); }"
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=60_000)
        tab = browser.new_page(viewport={"width": 390, "height": 844})
        tab.goto((finished / "sweep.html").resolve().as_uri())
        names = tab.locator("svg text", has_text="is better")
        found = {names.nth(i).text_content(): names.nth(i).evaluate(ends) for i in range(names.count())}
        browser.close()
    assert any(name.startswith("Frechet distance") for name in found) and min(found.values()) > -1, found


def test_a_collapsed_model_has_one_mode_and_is_told_from_one_that_draws_real_scenes(result, finished):
    rows = {(row["model"], row["rule"], row["gamma"]): row["means"] for row in result["summary"]["curves"]}
    assert len(rows) == 8
    for rule in ("CFG", "interval"):
        baseline, kaleido = rows["baseline", rule, 4.0], rows["Kaleido", rule, 4.0]
        assert baseline["effective_number"] == pytest.approx(1) and kaleido["effective_number"] > 3.5
        assert baseline["vendi"] == pytest.approx(1) and kaleido["vendi"] > 1.5
        assert baseline["similarity"] == pytest.approx(1) and kaleido["similarity"] < 0.95
        assert baseline["recall"] < 0.3 < 0.8 < kaleido["recall"]
        assert baseline["frechet"] > 2 * kaleido["frechet"]
    assert json.loads((finished / "sweep.json").read_text()) == result
    found = result["summary"]["claim"]
    assert (found["baseline"], found["rule"], found["gamma"]) == ("baseline", "CFG", 1.0)
    assert {row["model"] for row in found["beside"]} == {"Kaleido"}
    assert all(row["effective_number_ratio"] > 3 and row["frechet_difference"] < 0 for row in found["beside"])


def test_cells_that_are_the_same_are_drawn_once_and_a_second_run_draws_nothing(pretending, tmp_path):
    first = SweepRun(SWEEP, tmp_path).run()
    # Of each model: two settings tried, then gamma 1, which no rule guides, and gamma 4 under two rules.
    assert sampled(pretending) == 2 * (2 * 20 + 3 * NUMBER)
    at_one = [cell["sheet"] for cell in first["cells"] if cell["gamma"] == 1 and cell["model"] == "Kaleido"]
    assert len(at_one) == 2 and len(set(at_one)) == 1
    before = sampled(pretending)
    assert SweepRun(SWEEP, tmp_path).run() == first and sampled(pretending) == before


def test_a_sweep_that_was_killed_goes_on_to_the_same_bytes(pretending, result, finished, tmp_path, monkeypatch):
    calls, image_part = [], PretendedModel.sample_images
    before = sampled(pretending)  # of `result`, if this is the first test that wants it

    def dies(self, *args, **options):
        calls.append(0)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return image_part(self, *args, **options)

    monkeypatch.setattr(PretendedModel, "sample_images", dies)
    with pytest.raises(KeyboardInterrupt):
        SweepRun(SWEEP, tmp_path).run()
    assert not (tmp_path / "sweep.json").exists() and list(tmp_path.glob("images/*/*.npz"))
    SweepRun(SWEEP, tmp_path).run()
    for name in ("sweep.json", "sweep.md", "sweep.html", "sweep.png"):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()
    # 20 samples of the undisturbed run's 560 were lost at most.
    assert sampled(pretending) - before <= 2 * (2 * 20 + 3 * NUMBER)


def test_parts_of_a_sweep_make_the_same_bytes_and_a_last_run_draws_nothing(
    pretending, result, finished, tmp_path, monkeypatch
):
    for part in ("Kaleido/0", "baseline/0"):
        assert SweepRun(SWEEP, tmp_path, part).run_part() == 4
    assert not (tmp_path / "sweep.json").exists() and len(list(tmp_path.glob("cells/*.json"))) == 6
    before = sampled(pretending)
    SweepRun(SWEEP, tmp_path).run()
    assert sampled(pretending) == before
    for name in ("sweep.json", "sweep.md", "sweep.html", "sweep.png"):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()


@pytest.mark.slow
def test_cells_are_measured_again_when_captions_modes_or_what_tells_them_apart_change(pretending, tmp_path):
    sweep = dataclasses.replace(SWEEP, models=SWEEP.models[1:], gammas=(4.0,), num_samples=NUMBER)
    run = SweepRun(sweep, tmp_path)
    run.run()
    measure, before = run.measure, sampled(pretending)
    keys = {path.name for folder in ("cells", "tuning") for path in tmp_path.glob(f"{folder}/*.json")}
    caption = measure.captions[0]
    named = dataclasses.replace(measure.modes[caption], names=measure.modes[caption].names[::-1])
    shared = dataclasses.replace(measure.modes[caption], shares=measure.modes[caption].shares[::-1])
    for changes in (
        {"modes": measure.modes | {caption: named}},
        {"modes": measure.modes | {caption: shared}},
        {"identity": "other images"},
    ):
        run.measure = dataclasses.replace(measure, **changes)
        run.run()
        found = {path.name for folder in ("cells", "tuning") for path in tmp_path.glob(f"{folder}/*.json")}
        assert keys < found and len(found) - len(keys) == 4
        keys = found
    assert sampled(pretending) == before  # the samples are the same
    of = {path.name: json.loads(path.read_text())["of"] for path in tmp_path.glob("cells/*.json")}
    assert all(one["captions"] == list(measure.captions) for one in of.values())


def test_a_part_needs_its_own_models_alone(tmp_path):
    model = SweptModel(name="several", paths=("emoji-tiny", "nowhere", "emoji-tiny"))
    sweep = dataclasses.replace(SWEEP, models=(model, SweptModel(name="other", paths=("nowhere",))))
    assert SweepRun(sweep, tmp_path, "several/2").run_part() == 4
    with pytest.raises(UserError, match="nowhere"):
        SweepRun(sweep, tmp_path, "several/1")
    with pytest.raises(UserError, match="part 'several/3'; expected one of several/0, several/1, several/2, other/0"):
        SweepRun(sweep, tmp_path, "several/3")


def test_the_settings_with_the_least_distance_are_taken_and_every_rule_has_the_same_budget(tmp_path, monkeypatch):
    images = PretendedModel.sample_images

    def better_below(self, captions, latents, *, sample, **options):
        x = images(self, captions, latents, sample=sample, **options)
        return x if sample.guidance_interval[:1] == (0.3,) else np.zeros_like(x)

    monkeypatch.setattr(PretendedModel, "sample_images", better_below)
    sweep = dataclasses.replace(SWEEP, rules=SWEEP.rules[1:], gammas=(4.0,))
    result = SweepRun(sweep, tmp_path).run()
    assert [one["taken"] for one in result["tuned"]] == [False, True, False, True]
    assert all(cell["of"]["sample"]["guidance_interval"][0] == 0.3 for cell in result["cells"])
    assert {cell["of"]["seed"] for cell in result["cells"]} == {0}
    kept = [json.loads(path.read_text())["of"] for path in tmp_path.glob("tuning/*.json")]
    assert {(of["seed"], of["num_samples"]) for of in kept} == {(1000, 20)} and len(kept) == 4


def test_a_rule_that_needs_a_worse_model_is_left_out_for_models_without(tmp_path):
    auto = SweptRule(name="autoguidance", sample=("guidance=autoguidance",))
    models = (SWEEP.models[0], dataclasses.replace(SWEEP.models[1], worse=("emoji-tiny",)))
    sweep = dataclasses.replace(SWEEP, models=models, rules=(auto, SweptRule(name="CFG")), gammas=(2.0,))
    plan = [cells.cells(sweep, {m.name: {"CFG": (), "autoguidance": ()} for m in models}, m, 0) for m in models]
    names = [[(cell.rule, cell.worse_step) for cell in of_model] for of_model in plan]
    assert names == [[("CFG", None)], [("CFG", None), ("autoguidance", 0)]]


def with_worse(tmp_path, *steps):
    """A sweep of one model that has checkpoints of these steps, under autoguidance with the one at 20 or at 40."""
    run = tmp_path / "run"
    run.mkdir()
    for step in steps:
        (run / "checkpoints" / str(step)).mkdir(parents=True)
    (run / "config.json").write_text(load_config("emoji_combined").to_json())
    tried = ("autoguidance_step=20",), ("autoguidance_step=40",)
    rule = SweptRule(name="autoguidance", sample=("guidance=autoguidance",), tried=tried)
    model = SweptModel(name="baseline", paths=(str(run),), worse=(str(run),), worse_step=10)
    return dataclasses.replace(SWEEP, models=(model,), rules=(rule,), gammas=(1.0, 4.0))


def test_the_worse_model_is_the_checkpoint_that_did_best_or_the_models_own(tmp_path):
    sweep = with_worse(tmp_path)
    for tried, step in ((("autoguidance_step=40",), 40), ((), 10)):
        plan = list(cells.cells(sweep, {"baseline": {"autoguidance": tried}}, sweep.models[0], 0))
        assert [cell.worse_step for cell in plan] == [None, step]  # at gamma 1 no rule guides


def test_a_worse_model_that_is_not_there_is_refused_before_any_is_loaded(tmp_path):
    sweep = with_worse(tmp_path, 10, 20, 80)
    message = "step 40 of .*run, the worse model of 'baseline'; expected one of its checkpoints 10, 20, 80; correct"
    with pytest.raises(UserError, match=message):
        SweepRun(sweep, tmp_path / "out")
    cells.check_models(dataclasses.replace(sweep, gammas=(1.0,)))
    (tmp_path / "run" / "checkpoints" / "40").mkdir()
    cells.check_models(sweep)


def test_a_model_is_drawn_and_tuned_under_its_own_rules_alone(tmp_path):
    models = (SWEEP.models[0], dataclasses.replace(SWEEP.models[1], rules=("CFG",)))
    result = SweepRun(dataclasses.replace(SWEEP, models=models, gammas=(4.0,)), tmp_path).run()
    drawn = [(cell["model"], cell["rule"]) for cell in result["cells"]]
    assert sorted(drawn) == [("Kaleido", "CFG"), ("baseline", "CFG"), ("baseline", "interval")]
    assert {one["model"] for one in result["tuned"]} == {"baseline"}
    assert markdown(result).count("| Kaleido | interval |") == 0


@pytest.mark.slow
def test_a_worse_model_that_is_the_model_itself_guides_nowhere(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "open_model", cells.open_model)
    few = SetProtocol(extractors=("sprite-reader",), resize="means", num_samples=20, num_reference=20, num_neighbors=20)
    monkeypatch.setitem(sets.SET_PROTOCOLS, "few", few)
    sweep = Sweep(
        protocol="few",
        models=(SweptModel(name="Kaleido", paths=("emoji-tiny",), worse=("emoji-tiny",)),),
        rules=(SweptRule(name="CFG"), SweptRule(name="auto", sample=("guidance=autoguidance",))),
        gammas=(1.0, 4.0),
        sample=("sampler=ddim", "num_steps=2"),
        num_samples=20,
        num_reference=20,
        chunk=20,
    )
    result = SweepRun(sweep, tmp_path).run()
    (unguided, cfg), (same, auto) = (
        [cell for cell in result["cells"] if cell["rule"] == rule] for rule in ("CFG", "auto")
    )
    assert same["sheet"] == unguided["sheet"]  # at gamma 1 no rule guides
    assert auto["stamp"]["guidance"] == f"autoguidance, worse {auto['of']['model']['weights']}"
    pixels = {path.parent.name: np.load(path)["pixels"] for path in tmp_path.glob("images/*/*.npz")}
    assert len(pixels) == 3 and len(list(tmp_path.glob("latents/*"))) == 1
    others = [[np.abs(a.astype(int) - b).max() for b in pixels.values() if b is not a] for a in pixels.values()]
    assert sorted(min(each) for each in others)[:2] == pytest.approx([0, 0], abs=1)  # unguided and guided by itself
    assert max(max(each) for each in others) > 20  # CFG


def test_shuffled_latents_are_those_of_other_images_of_the_same_caption(tmp_path):
    model, captions = PretendedModel(), ("fruit", "bird", "heart")
    sample = model.override({"gamma": 2.0})
    own = draw(model, sample, captions, 30, 0, tmp_path)
    other = draw(model, sample, captions, 30, 0, tmp_path, shuffled=True)
    for caption in range(3):
        mine, theirs = ([z.tokens for z, c in zip(d.z, d.captions, strict=True) if c == caption] for d in (own, other))
        assert sorted(mine) == sorted(theirs) and all(
            a != b or mine.count(a) > 1 for a, b in zip(mine, theirs, strict=True)
        )
    assert len(list(tmp_path.glob("images/*"))) == 2 and len(list(tmp_path.glob("latents/*"))) == 1


def test_a_caption_has_one_z_where_that_is_asked_for_and_other_noise_for_each_image(tmp_path):
    model, captions = PretendedModel(), ("fruit", "bird", "heart")
    sample = model.override({"gamma": 2.0})
    own = draw(model, sample, captions, 30, 0, tmp_path)
    same = draw(model, sample, captions, 30, 0, tmp_path, same_z=True)
    assert [z.tokens for z in same.z] == [own.z[kind].tokens for kind in same.captions]
    assert len(list(tmp_path.glob("images/*"))) == 2 and len(list(tmp_path.glob("latents/*"))) == 1


def test_more_samples_of_the_same_settings_keep_those_that_are_there(pretending, tmp_path):
    model = PretendedModel()
    sample = model.override({})
    few = draw(model, sample, ("fruit", "bird"), 40, 0, tmp_path)
    more = draw(model, sample, ("fruit", "bird"), 80, 0, tmp_path)
    assert len(model.sampled) == 80
    np.testing.assert_array_equal(more.pixels[:40], few.pixels)


# ------------------------------------------------------------------------------------------------ summary
def test_the_reader_has_one_identity():
    identities = {json.dumps(reader_extractor(open_reader(SIZE, Path())).identity) for _ in range(8)}
    assert len(identities) == 1
    assert len({json.dumps(open_reader(SIZE, Path()).metadata) for _ in range(8)}) == 1


def cell(model="baseline", rule="CFG", gamma=1.0, training=0, seed=0, **values):
    texts = ("protocol", "extractor", "weights", "resize", "reference", "split", "checkpoint", "sampler", "guidance")
    stamp = dict.fromkeys(texts, "x") | dict.fromkeys(("k", "num_reference", "num_samples", "num_steps"), 1)
    stamp |= {"prior": "" if model == "baseline" else "temperature 1", "gamma": gamma, "seeds": (training, seed)}
    numbers = {"kind_right": 0.9, "recall": 0.5, "effective_number": 5.0, "frechet": 10.0} | values
    numbers |= {name: 0.0 for name in ("modes_found", "total_variation", "precision", "vendi")}
    place = {"model": model, "rule": rule, "gamma": gamma, "training": training, "seed": seed}
    return place | {"stamp": stamp, "values": numbers}


def test_errors_are_over_trainings_where_there_are_several_and_else_over_seeds():
    of_trainings = [cell(training=t, seed=s, recall=t + s / 10) for t in (0, 1, 2) for s in (0, 1)]
    (row,) = summarize({"cells": of_trainings})["curves"]
    assert (row["of"], row["number"]) == ("trainings", 3)
    assert row["means"]["recall"] == pytest.approx(1.05)
    assert row["errors"]["recall"] == pytest.approx(1 / np.sqrt(3))
    (row,) = summarize({"cells": of_trainings[:2]})["curves"]
    assert (row["of"], row["number"]) == ("seeds", 2) and row["errors"]["recall"] == pytest.approx(0.05)
    (row,) = summarize({"cells": of_trainings[:1]})["curves"]
    assert row["errors"]["recall"] is None


def test_models_are_compared_at_the_least_gamma_where_the_baseline_is_right_enough():
    made = [
        cell(gamma=1.0, kind_right=0.8),
        cell(gamma=2.0, kind_right=0.955, recall=0.4, effective_number=4.0),
        cell(gamma=4.0, kind_right=0.96, recall=0.1),
        cell(rule="APG", gamma=4.0, kind_right=0.9, recall=0.45),
        cell(model="Kaleido", gamma=1.0),
        cell(model="Kaleido", gamma=2.0, recall=0.6, effective_number=8.0, frechet=9.0),
    ]
    found = claim(summarize({"cells": made})["curves"])
    assert found["gamma"] == 2 and found["rivals"]["APG"]["gamma"] == 4
    (beside,) = found["beside"]
    assert beside["recall_ratio"] == pytest.approx(1.5) and beside["effective_number_ratio"] == pytest.approx(2)
    assert beside["frechet_difference"] == pytest.approx(-1)
    text = markdown({"summary": summarize({"cells": made}), "tuned": []})
    assert "| Kaleido | CFG | 2 | 0.900 | 0.600 | 8.000 | 9.000 | 1.50 | 2.00 |" in text
    assert claim(summarize({"cells": made[:4]})["curves"]) is None


def test_a_metric_that_cells_lack_is_of_those_that_have_it(tmp_path):
    made = [
        *(cell(training=t, recall=0.4 + t / 10) for t in (0, 1)),
        *(cell(model="Kaleido", training=t, effective_number=6.0 + t) for t in (0, 1)),
        cell(rule="APG"),
    ]
    for one in (made[0], made[3], made[4]):  # no image of the right kind, so no mode was counted
        del one["values"]["effective_number"]
    summary = summarize({"cells": made})
    baseline, kaleido, apg = summary["curves"]
    assert baseline["means"]["effective_number"] == 5 and baseline["errors"]["effective_number"] is None
    assert baseline["means"]["recall"] == pytest.approx(0.45) and baseline["errors"]["recall"] == pytest.approx(0.05)
    assert kaleido["means"]["effective_number"] == 6 and "effective_number" not in apg["means"]
    (beside,) = summary["claim"]["beside"]
    assert beside["effective_number_ratio"] == pytest.approx(6 / 5)
    assert "| baseline | APG | 1 | 0.900 | 0.500 | - | 10.000 |  |  |" in markdown({"summary": summary, "tuned": []})
    write_figure(summary, tmp_path / "sweep.png")
    for one in made[:2]:  # the claim's baseline has none at all
        one["values"].pop("effective_number", None)
    summary = summarize({"cells": made})
    assert summary["claim"]["beside"][0]["effective_number_ratio"] is None
    assert "| 6.000 | 10.000 | 1.11 | - |" in markdown({"summary": summary, "tuned": []})
    write_figure(summary, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").stat().st_size


@pytest.mark.parametrize(
    ("distance", "rivals"),
    [
        (3.0, ["baseline, CADS (rival: most modes)", "baseline, APG (rival: least distance)"]),
        (1.0, ["baseline, CADS (rival: most modes, least distance)"]),
    ],
)
def test_the_figure_shows_the_baseline_its_best_rule_by_each_metric_and_every_model_with_latents(distance, rivals):
    made = [
        *(cell(rule="CFG", gamma=g, effective_number=5.0) for g in (1.0, 4.0)),
        *(cell(rule="APG", gamma=g, effective_number=4.0, frechet=2.0) for g in (1.0, 4.0)),
        *(cell(rule="CADS", gamma=g, effective_number=6.0, frechet=distance) for g in (1.0, 4.0)),
        *(cell(model="Kaleido", rule=rule, gamma=4.0) for rule in ("CFG", "interval", "APG")),
    ]
    shown = curves_shown(summarize({"cells": made}))
    assert list(shown) == ["baseline, CFG", *rivals, "Kaleido, CFG", "Kaleido, interval"]
    assert [row["gamma"] for row in shown["baseline, CFG"]] == [1.0, 4.0]


def test_a_name_with_dollars_is_drawn_as_it_is(tmp_path):
    write_figure(summarize({"cells": [cell(model=r"$\foo$")]}), tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").stat().st_size


def test_a_sheet_of_many_captions_is_as_high_as_a_jpeg_may_be(pretending, tmp_path):
    run = SweepRun(dataclasses.replace(SWEEP, shown=1), tmp_path)
    captions, pixels = np.arange(2_100), np.full((2_100, SIZE, SIZE, 3), 200, np.uint8)
    run.measure = SimpleNamespace(captions=tuple(map(str, captions)))
    run._show(Drawn(captions=captions, pixels=pixels, z=[]), tmp_path / "sheet.jpg")
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        assert sheet.size == (31, 31 * 2_100) and sheet.getpixel((5, 50_000)) == (200, 200, 200)


def test_a_rule_that_does_not_guide_is_no_rival_of_the_figure():
    made = [
        *(cell(rule="CFG", gamma=g, kind_right=right, effective_number=5.0) for g, right in ((1.0, 0.5), (4.0, 0.8))),
        *(cell(rule="APG", gamma=g, kind_right=right, effective_number=4.0) for g, right in ((1.0, 0.5), (4.0, 0.66))),
        # Right most often without guidance, where the modes are.
        *(cell(rule="bad", gamma=g, kind_right=right, effective_number=9.0) for g, right in ((1.0, 0.5), (4.0, 0.4))),
        cell(model="Kaleido", gamma=4.0),
    ]
    assert "baseline, APG (rival: most modes, least distance)" in curves_shown(summarize({"cells": made}))


def test_a_rival_has_its_best_gamma_where_it_guides():
    made = [
        *(cell(gamma=g, kind_right=right) for g, right in ((1.0, 0.5), (4.0, 0.8))),
        # The interval is right most often where it is so strong that it ruins images; at 2 it hardly guides.
        *(
            cell(rule="interval", gamma=g, kind_right=right, effective_number=modes, frechet=distance)
            for g, right, modes, distance in ((2.0, 0.6, 8.0, 1.0), (4.0, 0.75, 7.0, 2.0), (8.0, 0.78, 3.0, 9.0))
        ),
        cell(rule="CADS", gamma=4.0, kind_right=0.7, effective_number=6.0, frechet=3.0),
        cell(rule="APG", gamma=4.0, kind_right=0.7, effective_number=7.5, frechet=4.0),
        cell(model="Kaleido", gamma=4.0),
    ]
    found = summarize({"cells": made})["claim"]
    assert found["rivals"]["interval"]["gamma"] == 8
    assert found["best_rival"] == {"effective_number": "APG", "frechet": "interval"}


# --------------------------------------------------------------------------------------------------- page
def test_the_page_is_whole_and_asks_for_nothing_from_outside(result, finished):
    text = (finished / "sweep.html").read_text()
    addresses = set(re.findall(r"https?://[^\"' ]+", text))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert "default-src 'none'" in text and "__DATA__" not in text and "__TITLE__" not in text
    (content,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    data = json.loads(content)
    assert data["summary"] == result["summary"] and len(data["cells"]) == 8
    assert all(one["sheet"].startswith("data:image/jpeg;base64,") for one in data["cells"])
    assert all(len(row) == 4 for one in data["cells"] for row in one["seen"])


def test_a_name_cannot_end_the_pages_script(tmp_path):
    sweep = dataclasses.replace(SWEEP, name="</script><b>", rules=SWEEP.rules[:1], gammas=(4.0,))
    SweepRun(sweep, tmp_path).run()
    text = (tmp_path / "sweep.html").read_text()
    assert text.count("</script>") == 2 and "<b>:" not in text


# ------------------------------------------------------------------------------------------- command line
def test_a_sweep_is_named_and_changed_on_the_command_line():
    flags = ["--sweep=sweep_emoji:short", "--sweep.num_samples=70", "--sweep.gammas=(2,3)", "--workdir=w"]
    arguments = parse_flags(VERBS["evaluate"], flags)
    assert arguments["config"] is None
    loaded = load_sweep(*arguments["sweep"])
    assert (loaded.num_samples, loaded.gammas) == (70, (2.0, 3.0)) and loaded.rules[0].name == "CFG"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--sweep=sweep_emoji", "--config=emoji_combined"], "--config beside --sweep"),
        (["--sweep.seeds=(1,)"], "--sweep.seeds without --sweep"),
        ([], "no --config"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(flags, said):
    with pytest.raises(UserError, match=re.escape(said)):
        parse_flags(VERBS["evaluate"], [*flags, "--workdir=w"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"models": ()}, "sweep.models named none"),
        ({"models": (SweptModel(name="a", paths=("x",)), SweptModel(name="a", paths=("y",)))}, "named 'a', 'a'"),
        ({"models": (SweptModel(name="a"),)}, "model 'a' with 0 paths"),
        (
            {"models": (SweptModel(name="a", paths=("b",), rules=("CFG", "APG")),)},
            "model 'a' under APG",
        ),
        ({"models": (SweptModel(name="a", paths=("b",), shuffled=True, same_z=True),)}, "'a' with shuffled and"),
        ({"gammas": (1.0, 1.0)}, "sweep.gammas"),
        ({"sample": ("num_stepz=3",)}, "num_stepz"),
        ({"sample": ("num_steps",)}, "FIELD=VALUE"),
        ({"rules": (SweptRule(name="x", sample=("guidance=cads", "cads_mix=3")),)}, "cads_mix"),
    ],
)
def test_a_bad_sweep_is_refused_before_anything_is_drawn(changes, said, tmp_path):
    path = tmp_path / "sweep.json"
    path.write_text(json.dumps(dataclasses.asdict(dataclasses.replace(SWEEP, **changes))))
    with pytest.raises(UserError, match=re.escape(said)):
        load_sweep(str(path), {})


def test_configs_and_sweeps_are_told_apart_and_a_refused_sweep_leaves_nothing(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="--sweep=emoji_combined, a config of a model; expected a sweep"):
        load_sweep("emoji_combined", {})
    with pytest.raises(UserError, match="give it to `evaluate` by --sweep=NAME"):
        load_config("sweep_emoji")
    monkeypatch.chdir(tmp_path)  # whoever ran the experiments has these models
    with pytest.raises(UserError, match="no model 'runs/claim/baseline-0'"):
        VERBS["evaluate"].run(None, tmp_path / "w", ("sweep_emoji:claim", {}))
    assert not (tmp_path / "w").exists()


def test_too_few_images_other_protocols_and_missing_models_are_refused(tmp_path):
    for changes, said in (
        ({"num_samples": NUMBER - 1}, "79 samples for protocol tiny"),
        ({"protocol": "emojis"}, "sweep.protocol = 'emojis'"),
        ({"models": (SweptModel(name="a", paths=("runs/none",)),)}, "no model 'runs/none'"),
    ):
        with pytest.raises(UserError, match=re.escape(said)):
            SweepRun(dataclasses.replace(SWEEP, **changes), tmp_path)


@pytest.mark.parametrize("path", sorted(Path("configs").glob("sweep_*.py")), ids=lambda path: path.stem)
def test_every_shipped_sweep_is_valid_in_each_of_its_variants(path):
    variants = runpy.run_path(str(path))["VARIANTS"]
    for variant in variants:
        sweep = load_sweep(f"{path}:{variant}", {})
        assert sweep.num_samples >= sets.SET_PROTOCOLS[sweep.protocol].num_samples
    with pytest.raises(UserError, match=f"one of {', '.join(variants)}"):
        load_sweep(f"{path}:others", {})


def test_the_claims_models_differ_in_what_they_are_called_for_and_in_nothing_else():
    models = runpy.run_path("configs/claim_emoji.py")["MODELS"]
    for variants in (("claim", "claim-controls"), ("claim-cpu", "claim-cpu-controls")):
        sweeps = [load_sweep(f"sweep_emoji:{variant}", {}) for variant in variants]
        names = [model.rpartition("-")[0] for sweep in sweeps for one in sweep.models for model in one.paths]
        assert {Path(name).name for name in names} == set(models)
    for size in ("", "cpu-"):
        check_the_claims_configs(size, models)


def check_the_claims_configs(size, models):
    base = load_config(f"claim_emoji:{size}combined-0")
    same = {}
    for name in models:
        config = load_config(f"claim_emoji:{size}{name}-0")
        flat = flatten_dict(dataclasses.asdict(dataclasses.replace(config, name="")), sep=".")
        other = flatten_dict(dataclasses.asdict(dataclasses.replace(base, name="")), sep=".")
        same[name] = {key for key in flat if flat[key] != other[key]}
    assert same["combined"] == set() and same["eta01"] == {"train.eta"} and same["uncond30"] == {"diffusion.p_uncond"}
    assert same["oracle"] == {"latents.segments", "data.emoji.names_alone", "data.records"}
    assert all(same[name] == {"latents.segments"} for name in ("baseline", "text", "bbox", "blob", "voken"))
    assert load_config(f"claim_emoji:{size}baseline-2").seed == 2
    with pytest.raises(UserError, match="expected MODEL-SEED"):
        load_config(f"claim_emoji:{size}baseline")
    early = 1 - base.train.keep_every_steps / base.train.num_steps
    assert base.train.ema_decay**base.train.keep_every_steps < 0.03 and early > 0.8  # a worse model, yet a model


def test_of_one_setting_twice_the_last_holds():
    assert settings(("gamma=2", "guidance_interval=(1,2)", "gamma=3")) == {"gamma": 3.0, "guidance_interval": (1, 2)}


def test_cells_are_found_again_by_what_they_depend_on_whatever_their_stamps_say(
    pretending, result, finished, monkeypatch
):
    before = sampled(pretending)
    monkeypatch.setattr(running, "sampler_text", lambda sample, config: "said otherwise")
    assert SweepRun(SWEEP, finished).run() == result and sampled(pretending) == before


def test_the_stamp_says_what_else_moves_x_and_no_setting_without_effect():
    config = dataclasses.replace(single_net_config(), diffusion=Diffusion())
    assert sampler_text(Sample(sampler="ddpm"), config) == "ddpm, threshold clip"
    assert sampler_text(Sample(sampler="ddim", ddim_eta=1.0, start_at_n=True), config).endswith(", eta 1, from N")
    few, many = (Sample(sampler="ddpm", num_steps=n, sigma_min=0.085) for n in (20, 250))
    assert sampler_text(few, config) == "ddpm, threshold clip"
    assert sampler_text(many, config) == "ddpm, threshold clip, no steps below sigma 0.085"
    micro = Sample(micro=(("scale", 64.0), ("crop", 0.5)))
    half = dataclasses.replace(config, model=dataclasses.replace(config.model, precision="bfloat16"))
    assert sampler_text(micro, half) == "ddpm, threshold clip, micro crop 0.5, micro scale 64, in bfloat16"
