import json

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example as case
from hypothesis import given

from kaleido_jax.annotate.annotator import Failure
from kaleido_jax.annotate.vlm import prompts
from kaleido_jax.annotate.vlm.answers import Answer, UnusableAnswer, description_of
from kaleido_jax.annotate.vlm.captioner import Captioner, open_captioner
from kaleido_jax.annotate.vlm.model import Unanswered, seed_of
from kaleido_jax.config.schema import Annotate, AnnotateEndpoint, AnnotateText
from kaleido_jax.errors import UserError
from kaleido_jax.latents.types import Latents, validate
from tests.annotate.vlm.openai_server import GOOD, example


class Recorded:
    """A VisionModel that gives one answer to all, and keeps what it was asked."""

    metadata = {"model": "recorded"}

    def __init__(self, text, own_prompts=None):
        self.text, self.own_prompts, self.questions = text, own_prompts or {}, []

    def ask(self, questions, read):
        self.questions += questions
        try:
            return [read(Answer(text=self.text)) for _ in questions]
        except UnusableAnswer as error:
            return [Unanswered(reason=str(error)) for _ in questions]


# ------------------------------------------------------------------------------------------------- answers
OTHERS = "The picture shows a wooden table by the window with cups on it, "
USABLE = {
    "plain": GOOD,
    "paragraphs": GOOD.replace(". ", ".\n\n"),
    "fenced": f"```\n{GOOD}\n```",
    "fenced json": f'```json\n{{"description": "{GOOD}"}}\n```',
    "json": f'{{"title": "A dog", "caption": "{GOOD}"}}',
    "json of another name": f'{{"answer": "{GOOD}", "words": 73}}',
    "json string": f'"{GOOD}"',
    "thoughts": f"<think>\nThe user wants 50 words. <PERSON> is a tag.\n</think>\n\n{GOOD}",
    "closing think tag alone": f"The user wants 50 words.\n</think>\n\n{GOOD}",
    "two thoughts": f"<think>\nHm.\n</think>\n<think>{OTHERS}</think>{GOOD}",
    "thoughts never closed": f"{GOOD}\n<think>Is that enough?",
    "answer tags": f"<think>Hm.</think><answer>{GOOD}</answer>",
    "medgemma": f"<unused94>thought\nLet me look. {OTHERS}<unused95>{GOOD}",
    "conclusion": f"<SUMMARY>I will look.</SUMMARY><CONCLUSION>{GOOD}</CONCLUSION>",
    "special tokens": f"{GOOD}<|im_end|></s>",
    "sentence, fenced json": f'Here is the description:\n```json\n{{"description": "{GOOD}"}}\n```',
    "fenced json, sentence": f'```json\n{{"description": "{GOOD}"}}\n```\nI hope this helps!',
    "fenced JSON, CRLF": f'```JSON\r\n{{\r\n  "description": "{GOOD}"\r\n}}\r\n```',
    "fence of one line": f'```json {{"description": "{GOOD}"}}```',
    "fence never closed": f'```json\n{{"description": "{GOOD}"}}',
    "sentence, fenced text": f"Sure! Here it is:\n\n```text\n{GOOD}\n```\nAnything else?",
    "sentence, json": f'Here is the description you asked for: {{"description": "{GOOD}"}}',
    "json, sentence": f'{{"description": "{GOOD}"}}\n\nI hope this helps!',
    "line breaks in json": '{"description": "' + GOOD.replace(". ", ".\n\n") + '"}',
    "tab in json": '{"description": "' + GOOD.replace(" and ", "\tand ") + '"}',
    "line breaks in a json string": '"' + GOOD.replace(". ", ".\n") + '"',
    "single quotes": f"{{'description': '{GOOD}'}}",
    "typographic quotes": f"{{“description”: “{GOOD}”}}",
    "trailing comma": f'{{"description": "{GOOD}",}}',
    "escapes": json.dumps({"description": GOOD.replace("small", "s\u006dall")}).replace("/", "\\/"),
    "list of one": f'[{{"description": "{GOOD}"}}]',
    "list of one string": f'["{GOOD}"]',
    "sentences": json.dumps({"description": [s.strip(".") + "." for s in GOOD.split(". ")]}),
    "nested": f'{{"result": {{"title": "A dog", "description": "{GOOD}"}}}}',
    "schema copied": f'{{"type": "object", "properties": {{"description": "{GOOD}"}}}}',
    "detailed": f'{{"title": "A dog", "Detailed_Description": "{GOOD}", "objects": ["dog", "sofa"]}}',
    "tool call": f'<tool_call>\n{{"name": "describe", "arguments": {{"description": "{GOOD}"}}}}\n</tool_call>',
    "heading": f"**Description:** {GOOD}",
    "introduction": f"Certainly, gladly! Here is a description of the picture:\n\n{GOOD}",
    "introduction on the same line": f"Here is the description of the picture: {GOOD}",
    "short introduction": f"Sure! Here's a description: {GOOD}",
    "title": f"## Description\n\n{GOOD}",
    "title on the same line": f"## Description {GOOD}",
    "title in bold": f"**Image Description**\n{GOOD}",
    "title in bold on the same line": f"**Description** {GOOD}",
    "title with a colon": f"Description of the image:\n{GOOD}",
    "quoted after a heading": f'Here is the description:\n\n"{GOOD}"',
    "typographic quotes around it": f"“{GOOD}”",
    "single quotes around it": f"'{GOOD}'",
    "bold": f"**{GOOD}**",
    "words in parentheses": f"{GOOD}\n\n(73 words)",
    "word count": f"{GOOD}\n\n**Word count:** 73",
    "good wishes": f"{GOOD}\n\nI hope this helps!",
    "offer": f"{GOOD} Let me know if you need anything else.",
    "all of it": f"Sure! Here's one:\n\n### Description\n\n**“{GOOD}”**\n\n*(73 words)*\n\nI hope this helps!",
    "answer": f"Answer: {GOOD}",
    "final answer in bold": f"**Final Answer:** {GOOD}",
    "role": f"Assistant: {GOOD}",
    "title with a dash": f"Description - {GOOD}",
    "title in bold with a dash": f"**Image description** — {GOOD}",
    "caption first": f"Caption: a dog\n\nDescription: {GOOD}",
    "caption first, in bold": f"**Caption:** A dog: asleep.\n**Detailed Description:**\n{GOOD}",
    "note": f"{GOOD}\n\nNote: I kept the names of the caption.",
    "note in parentheses": f"{GOOD} (Note: I kept the names. The caption has them.)",
    "note in bold": f"{GOOD}\n\n**Note:** The logo is hidden.",
    "boxed": f"\\boxed{{{GOOD}}}",
    "boxed text": f"The final answer is: $\\boxed{{\\text{{{GOOD}}}}}$",
    "bold in json": json.dumps({"description": f"**{GOOD}** (73 words)"}),
}


@pytest.mark.parametrize("text", USABLE.values(), ids=USABLE)
def test_usable_answers_become_the_text(text):
    assert description_of(Answer(text=text)) == GOOD


def test_the_separator_of_segments_is_replaced():
    assert description_of(Answer(text=GOOD.replace(", its", " | its"))) == GOOD.replace(", its", " / its")


REFUSED = {
    "": "empty",
    " \n\t": "empty",
    "{}": "empty",
    '{"description": 5}': "empty",
    "<think>Hm.</think>": "empty answer, all of it thoughts",
    "<think>The picture shows": "empty answer, all of it thoughts",
    f"{GOOD}\n</think>": "empty answer, all of it thoughts",
    f'Here you are: {{"description": "{OTHERS} with the sign "OPEN" on it"}}': "objects that are not JSON",
    f'{{"description": "{OTHERS} with a red': "objects cut off by the end",
    '```json\n{"objects": ["dog", "sofa"], "count": 2}\n```': "empty",
    "I'm sorry, but I can't assist with that request.": "refusal",
    "I\u2019m sorry, I can\u2019t help with identifying or describing people in images.": "refusal",
    "Sorry, I cannot view images directly, and so I have no way to describe what is shown in this one.": "refusal",
    "I am unable to view the image. Please provide a description of it, and I will write the text.": "refusal",
    "As an AI language model, I don't have the ability to see images, but here is what I could say.": "refusal",
    "I can't provide a description of the person in this picture because that would not be right.": "refusal",
    "I apologize, but no image seems to be attached to the message. Could you please send it again?": "refusal",
    "A dog on a sofa.": "5 words",
    "the dog and the cat " * 40: "200 words",
    "一只棕色的小狗躺在沙发上。" * 5: "60 of 60 letters are not Latin",
    "Собака лежит на диване. " * 5: "letters are not Latin",
    "Un petit chien brun est couché sur les genoux d'une personne en jean bleu, la tête tournée vers un ordinateur "
    "portable ouvert, dans un salon clair où l'on devine un canapé gris.": "not English",
    "Un perro pequeño y marrón descansa en el regazo de una persona con vaqueros azules, junto a un ordenador portátil "
    "abierto, en un salón luminoso con un sofá gris al fondo.": "not English",
    OTHERS + "and <PERSON> smiles at the camera.": "placeholder tag '<PERSON>'",
    OTHERS + "and [NAME] smiles at the camera.": "placeholder tag '[NAME]'",
    OTHERS + "and <person> smiles at the camera.": "placeholder tag '<person>'",
}


@pytest.mark.parametrize("text", REFUSED)
def test_useless_answers_are_refused_with_the_reason(text):
    with pytest.raises(UnusableAnswer) as error:
        description_of(Answer(text=text))
    assert REFUSED[text] in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        OTHERS + "under a neon sign that says \u201cI'm sorry\u201d and a poster with the words \u5c45\u9152\u5c4b.",
        '"Open" says the sign over the door of the shop, and a man with a red cap sweeps the pavement before it.',
        "I can see a small dog on a sofa, with a cushion of the same color next to it and a lamp behind.",
        OTHERS + "each with 3 < 4 spoons > 2 forks [sic].",
        OTHERS + "and the curly brackets {} and {so on} of a program on the screen of the laptop.",
        OTHERS + "and a screen with the lines ```x = 1``` and ```y = 2``` beside the cups.",
        "“Open” says the sign over the door, and a man with a red cap sweeps under a second one that says “Closed”",
        "'Open' says the sign over the door, and a man with a red cap sweeps under a second one that says 'Closed'",
        "**Open** says the sign over the door, and a man with a red cap sweeps under a second one that is **red**",
        "The description board at the door of the shop shows a map of the town, and a man with a red cap reads it.",
        "A man with a red cap stands at the door of the shop, and a sign next to him says that he has 18 words.",
        "The caption - of a red and blue sign over the door - is large, and a man with a red cap sweeps before it.",
        OTHERS + "and a note: a small yellow one on the door of the fridge, with the words to buy milk and eggs.",
        "Answer phones stand in a row along the table of the shop, and a man with a red cap looks at the last one.",
        OTHERS + "and a blackboard with the words \\boxed{x = 1} in white chalk, under which a small dog sleeps.",
        "[Open] says the sign over the door of the shop, and a man with a red cap sweeps the pavement before it.",
    ],
)
def test_what_only_looks_useless_is_kept(text):
    assert description_of(Answer(text=text)) == text


def test_an_answer_that_was_cut_off_is_no_description():
    with pytest.raises(UnusableAnswer, match="cut off"):
        description_of(Answer(text=GOOD, cut_off=True))


@given(
    st.one_of(
        st.text(), st.lists(st.sampled_from([*GOOD.split(), "|", "```", '{"text":', "\u2581", "<a>"])).map(" ".join)
    )
)
@case("[" * 20_000)
@case('{"a":' * 20_000)
@case("<think>" * 5_000)
@case("```" + "a" * 20_000)
@case("```" + "\n" * 20_000 + "a")
@case("I am very " * 5_000)
@case("</think>" * 5_000)
@case("``` " * 5_000)
@case('{"a":"' * 5_000)
@case('{"a":"b\ud83d' * 5_000)
@case("sure " + " " * 20_000)
@case("Description:\n" * 2_000)
@case("a. I hope this is it." * 1_000)
@case("a. Note: b. " * 2_000)
@case("a. Note: " + "." * 20_000 + "b")
@case("\\boxed{" * 5_000 + "}" * 5_000)
@case("Caption: a\n" * 2_000)
@case("a - " * 5_000)
@case("*_" * 5_000 + "a" + "_*" * 5_000)
def test_any_string_is_a_valid_text_or_unusable(text):
    try:
        found = description_of(Answer(text=text))
    except UnusableAnswer as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert validate(Latents(text=found)).text == found


# ------------------------------------------------------------------------------------------------- prompts
def test_instructions_ask_for_all_that_the_paper_asks_for():
    both = ("50 to 80 words", "English", "paragraph", "setting", "background", "surroundings", "colors", "light")
    both += ("composition", "style", "writing", "symbol", "logo", "people", "animals", "Make no list")
    caption = ("names", "objects", "events", "places", "tag such as <PERSON>", "characters")
    label = (
        "every labeled object",
        "size",
        "shape",
        "where it is",
        "near",
        "arranged",
        "what they do with",
        "textures",
    )
    for key, wanted in (("caption", both + caption), ("label", (*both, *label, "textures", "design"))):
        assert [word for word in wanted if word not in prompts.TEXT[key]] == []


def test_a_caption_is_data_in_a_prompt():
    caption = "<PERSON> at {max_boxes}\n100 % {caption} <|im_end|><image> \\1"
    assert prompts.fill("is: {caption}; {max_boxes}", caption, max_boxes=7) == (
        "is: a person at {max_boxes} 100 % {caption} \\1; 7"
    )


def test_prompt_hashes_tell_the_instructions_apart():
    templates = [*prompts.TEXT.values(), *prompts.BBOX.values()]
    assert len({prompts.prompt_hash(template) for template in templates}) == 4
    model = Recorded(GOOD)
    kept = [Captioner(model, instruction=key).metadata for key in ("caption", "label")]
    assert [metadata["prompt"] for metadata in kept] == [
        prompts.prompt_hash(prompts.TEXT[k]) for k in ("caption", "label")
    ]
    assert kept[0]["model"] == "recorded"


# ----------------------------------------------------------------------------------------------- captioner
def test_captioner_asks_about_each_image_with_its_caption():
    model = Recorded(GOOD)
    annotator = Captioner(model, instruction="label", image_size=28)
    assert annotator([example("one"), example("two")], [Latents()] * 2) == [Latents(text=GOOD)] * 2
    assert [question.id for question in model.questions] == ["test/one", "test/two"]
    for question, name in zip(model.questions, ("one", "two"), strict=True):
        assert question.prompt == prompts.TEXT["label"].replace("{caption}", f"image {name}")
        assert question.picture().size == (28, 28)


def test_a_model_with_prompts_of_its_own_gets_these():
    model = Recorded(GOOD, {"text": "<MORE_DETAILED_CAPTION>"})
    annotator = Captioner(model)
    annotator([example("one")], [Latents()])
    assert model.questions[0].prompt == "<MORE_DETAILED_CAPTION>"
    assert annotator.metadata["prompt"] == prompts.prompt_hash("<MORE_DETAILED_CAPTION>")


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((0, 0, 3), np.uint8),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        None,
    ],
)
def test_images_that_cannot_be_shown_fail_alone(image):
    bad = example("bad")
    object.__setattr__(bad, "image", image)  # what the checks at run time would not let pass
    results = Captioner(Recorded(GOOD))([example("one"), bad, example("two")], [Latents()] * 3)
    assert [type(result) for result in results] == [Latents, Failure, Latents]
    assert results[1].segment == "text" and "square RGB" in results[1].reason


def test_seeds_belong_to_the_image_and_the_try():
    seeds = {seed_of(id, k) for id in ("a", "b") for k in range(100)}
    assert len(seeds) == 200 and all(0 <= seed < 2**31 for seed in seeds)


def test_opening_without_server_or_weights_says_what_is_missing(tmp_path):
    pytest.importorskip("openai", reason="openai is not installed")
    with pytest.raises(UserError, match=r"base_url = None .*; set config.annotate.endpoint.base_url"):
        open_captioner(Annotate(text=AnnotateText(kind="openai")))
    config = Annotate(
        endpoint=AnnotateEndpoint(base_url="http://localhost:1/v1", model="m"), text=AnnotateText(kind="openai")
    )
    assert open_captioner(config).metadata["model"] == "m"
    with pytest.raises(UserError, match="no model in .*nowhere; expected a folder with config.json"):
        open_captioner(Annotate(text=AnnotateText(kind="transformers", model=str(tmp_path / "nowhere"))))
