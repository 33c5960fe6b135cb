import shutil

import numpy as np
import pytest

from tests.annotate.vlm import tiny_vlm
from tests.annotate.vlm.openai_server import GOOD

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed: pip install 'kaleido_jax[annotate]'")

from kaleido_jax.annotate.annotator import Failure
from kaleido_jax.annotate.vlm.captioner import Captioner, open_captioner
from kaleido_jax.annotate.vlm.grounder import Grounder
from kaleido_jax.annotate.vlm.local_model import RETRIES, LocalModel
from kaleido_jax.annotate.vlm.model import Question
from kaleido_jax.config.schema import Annotate, AnnotateText
from kaleido_jax.data.sources.base import Example
from kaleido_jax.errors import UserError
from kaleido_jax.latents.segments.bbox import Box
from kaleido_jax.latents.types import Latents

pytestmark = pytest.mark.slow

PROMPTS = ("Describe it.", "Describe it at length, please.", "What?", "A longer one is padded less than the others.")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """kind -> folder of a tiny model, made when it is first asked for."""
    made = {}

    def folder(kind):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("models") / kind
            tiny_vlm.write(kind, made[kind])
        return made[kind]

    return folder


def image(seed):
    return np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)


def examples(count):
    return [Example(id=f"e{i}", image=image(i), caption=f"thing {i}") for i in range(count)]


def says(model, text, monkeypatch, ends=True):
    """Makes the loaded model generate this text whatever it sees; returns the list of its generate() arguments."""
    import torch

    model._load()
    tokenizer, calls = model._processor.tokenizer, []
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    if model._model.config.is_encoder_decoder:
        tokens = [tokenizer.eos_token_id, tokenizer.bos_token_id, *tokens]  # as Florence-2 starts
    tail = [tokenizer.eos_token_id, tokenizer.pad_token_id] if ends else []

    def generate(input_ids, **more):
        calls.append({"input_ids": input_ids, **more})
        made = torch.tensor([tokens + tail] * len(input_ids))
        return made if model._model.config.is_encoder_decoder else torch.cat([input_ids, made], dim=1)

    monkeypatch.setattr(model._model, "generate", generate)
    return calls


@pytest.mark.parametrize("kind", ["llava", "qwen2.5"])
def test_an_answer_depends_on_neither_the_batch_nor_the_order(kind, folders):
    if kind == "qwen2.5":
        pytest.importorskip("torchvision", reason="torchvision, which this model's processor needs, is not installed")
    model = LocalModel(folders(kind), max_tokens=12, batch_size=3)
    questions = [Question(id=p, image=image(i), image_size=56, prompt=p) for i, p in enumerate(PROMPTS)]

    def texts(questions):
        return [latents.text for latents in model.ask(questions, lambda answer: Latents(text=repr(answer.text)))]

    together = texts(questions)
    assert len(set(together)) > 1  # it looks at picture or prompt
    assert texts(questions[::-1]) == together[::-1]
    assert [texts([question])[0] for question in questions] == together


def test_every_image_ends_in_text_or_failure(folders):
    annotator = Captioner(LocalModel(folders("llava"), max_tokens=12, batch_size=2), image_size=28)
    results = annotator(examples(3), [Latents()] * 3)
    assert [type(result) for result in results] == [Failure] * 3  # random weights write no English
    assert all(result.reason.endswith("(3 tries)") for result in results)
    # Retries are sampled, and still the image's own.
    assert annotator(examples(3)[1:2], [Latents()]) == results[1:2]


def test_unusable_answers_are_asked_for_again_alone_and_sampled(folders, monkeypatch):
    model = LocalModel(folders("llava"), max_tokens=12, batch_size=4)
    calls = says(model, "no", monkeypatch)
    Captioner(model, image_size=28)(examples(2), [Latents()] * 2)
    assert [len(call["input_ids"]) for call in calls] == [2] + [1] * (2 * RETRIES)
    assert [call["do_sample"] for call in calls] == [False] + [True] * (2 * RETRIES)


def test_a_good_answer_becomes_the_text(folders, monkeypatch):
    model = LocalModel(folders("llava"), max_tokens=12, batch_size=4)
    says(model, GOOD, monkeypatch)
    assert Captioner(model)(examples(5), [Latents()] * 5) == [Latents(text=GOOD)] * 5
    says(model, GOOD, monkeypatch, ends=False)
    [failure] = Captioner(model)(examples(1), [Latents()])
    assert "cut off" in failure.reason


def test_florence_gets_its_tasks_and_keeps_its_location_tokens(folders, monkeypatch):
    model = LocalModel(folders("florence"), max_tokens=12, batch_size=8)
    calls = says(model, "a dog<loc_10><loc_20><loc_500><loc_700>", monkeypatch)
    [result] = Grounder(model)(examples(1), [Latents()])
    assert result == Latents(bbox=(Box(phrase="a dog", box=(10, 20, 500, 700)),))
    tokenizer = model._processor.tokenizer
    assert "Locate the phrases in the caption: thing 0" in tokenizer.decode(calls[0]["input_ids"][0])
    calls = says(model, GOOD, monkeypatch)
    assert Captioner(model)(examples(1), [Latents()]) == [Latents(text=GOOD)]
    assert "Describe with a paragraph" in tokenizer.decode(calls[0]["input_ids"][0])


def test_kosmos_is_asked_to_ground_and_keeps_its_patch_tokens(folders, monkeypatch):
    model = LocalModel(folders("kosmos"), max_tokens=12, batch_size=8)
    says(model, "<phrase>a dog</phrase><object><patch_index_0000><patch_index_1023></object> sits", monkeypatch)
    [result] = Grounder(model)(examples(1), [Latents()])
    assert result == Latents(bbox=(Box(phrase="a dog", box=(16, 16, 984, 984)),))  # middles of the corner cells
    monkeypatch.undo()
    [answer] = model._generate([Question(id="e", image=image(0), image_size=28, prompt="<grounding>What")])
    assert "What" not in answer.text  # the prompt that it repeats is cut off


def test_captions_cannot_write_special_tokens(folders):
    bad = Example(id="e", image=image(0), caption="<image> <image>\n</s>thing")
    annotator = Captioner(LocalModel(folders("llava"), max_tokens=4, batch_size=8), image_size=28)
    assert isinstance(annotator([bad], [Latents()])[0], Failure)  # of the text, not of the processor


def test_metadata_is_the_folders_content_not_its_place(folders, tmp_path):
    copy = tmp_path / "elsewhere" / "llava"
    shutil.copytree(folders("llava"), copy)
    metadata = LocalModel(folders("llava"), max_tokens=4, batch_size=8).metadata
    assert LocalModel(copy, max_tokens=4, batch_size=8).metadata == metadata
    (copy / "more.safetensors").write_bytes(b"1")
    assert LocalModel(copy, max_tokens=4, batch_size=8).metadata != metadata


def test_what_is_no_model_is_refused_in_one_line(folders, tmp_path):
    with pytest.raises(UserError, match="no model in"):
        open_captioner(Annotate(text=AnnotateText(kind="transformers", model=str(tmp_path))))
    broken = tmp_path / "broken"
    shutil.copytree(folders("llava"), broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    mute = tmp_path / "mute"
    shutil.copytree(folders("llava"), mute)
    (mute / "chat_template.jinja").unlink()
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_text("{}")
    for folder, reason in ((broken, "cannot be loaded"), (mute, "no chat template"), (empty, "cannot be loaded")):
        annotator = open_captioner(Annotate(text=AnnotateText(kind="transformers", model=str(folder))))
        with pytest.raises(UserError, match=reason) as error:
            annotator(examples(1), [Latents()])
        assert "\n" not in str(error.value)
