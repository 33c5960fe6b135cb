import json

import pytest

from kaleido_jax.annotate.annotator import Failure
from kaleido_jax.annotate.vlm.answers import Answer, UnusableAnswer
from kaleido_jax.annotate.vlm.grounder import Grounder
from kaleido_jax.latents.segments.bbox import Box
from kaleido_jax.latents.types import Latents
from tests.annotate.vlm.openai_server import example
from tests.annotate.vlm.test_captioner import Recorded

DOG = Box(phrase="a brown dog", box=(112, 250, 500, 875))
LAPTOP = Box(phrase="an open laptop", box=(500, 375, 1000, 1000))
EMPTY_BOX = '{"bbox_2d": [5, 5, 5, 5], "label": "a line"}'
# What these models write for the same two boxes: coordinates, text before them -> (answer, Grounder's arguments).
RECORDED = {
    "Qwen2.5-VL": (
        '```json\n[\n\t{"bbox_2d": [50, 112, 224, 392], "label": "a brown dog"},\n'
        '\t{"bbox_2d": [224, 168, 448, 448], "label": "an open laptop"}\n]\n```',
        {"coordinates": "pixels", "image_size": 448},
    ),
    "Qwen3-VL": (
        '[{"bbox_2d": [112, 250, 500, 875], "label": "a brown dog"}, '
        '{"bbox_2d": [500, 375, 1000, 1000], "label": "an open laptop"}]',
        {},
    ),
    "Qwen3-VL thinking": (
        '<think>Maybe {"bbox_2d": [1, 2, 3, 4], "label": "cat"}?</think>\n'
        '[{"bbox_2d": [112, 250, 500, 875], "label": "a brown dog"},'
        '{"bbox_2d": [500, 375, 1000, 1000], "label": "an open laptop"}]',
        {},
    ),
    "Qwen-VL": (
        "<ref>a brown dog</ref><box>(112,250),(500,875)</box> beside "
        "<ref>an open laptop</ref><box>(500,375),(1000,1000)</box>",
        {"instruction": "caption"},
    ),
    "cut off": (
        '[{"bbox_2d": [112, 250, 500, 875], "label": "a brown dog"},'
        '{"bbox_2d": [500, 375, 1000, 1000], "label": "an open laptop"}, {"bbox_2d": [12, 3',
        {},
    ),
    "plain": ("a brown dog (112, 250, 500, 875) beside\nan open laptop (500, 375, 1000, 1000)", {}),
}


@pytest.mark.parametrize("answer, how", RECORDED.values(), ids=RECORDED)
def test_recorded_answers_become_boxes_on_the_crop(answer, how):
    results = Grounder(Recorded(answer), **how)([example("one")], [Latents()])
    assert results == [Latents(bbox=(DOG, LAPTOP))]


DRAFT, FINAL = (
    '[{"bbox_2d": [500, 500, 600, 600], "label": "cat"}]',
    '[{"bbox_2d": [10, 20, 300, 400], "label": "dog"}]',
)
THOUGHTFUL = {
    "closing tag alone": f"Maybe {DRAFT}, no.\n</think>\n\n{FINAL}",
    "two blocks": f"<think>{DRAFT}</think>\n<think>no: {DRAFT}</think>{FINAL}",
    "closed twice": f"<think>{DRAFT}</think> so {DRAFT}</think>{FINAL}",
    "never closed": f"{FINAL}\n<think>or {DRAFT}?",
    "another name": f"<thinking>{DRAFT}</thinking>{FINAL}",
    "upper case": f"<THINK>{DRAFT}</ THINK >{FINAL}",
    "answer tags": f"Let me see. {DRAFT}\n<answer>{FINAL}</answer>",
    "glm": f"<think>{DRAFT}</think><answer><|begin_of_box|>{FINAL}<|end_of_box|></answer>",
    "kimi": f"◁think▷{DRAFT}◁/think▷{FINAL}",
    "magistral": f"[THINK]{DRAFT}[/THINK]{FINAL}",
    "medgemma": f"<unused94>thought\n{DRAFT}<unused95>{FINAL}",
    "cohere": f"<|START_THINKING|>{DRAFT}<|END_THINKING|><|START_RESPONSE|>{FINAL}<|END_RESPONSE|>",
    "openthinker": f"<|begin_of_thought|>{DRAFT}<|end_of_thought|>\n<|begin_of_solution|>{FINAL}<|end_of_solution|>",
    "seed": f"<seed:think>{DRAFT}</seed:think>{FINAL}",
    "spaces in tags": f"< think >{DRAFT}< /think >{FINAL}",
    "llava-cot": f"<REASONING>{DRAFT}</REASONING><CONCLUSION>{FINAL}</CONCLUSION>",
    "upper case answer tags": f"{DRAFT}\n<Answer>{FINAL}</Answer>",
    "final answer": f"{DRAFT}\n<final_answer>{FINAL}</final_answer>",
    "solution alone": f"{DRAFT}\n<|begin_of_solution|>{FINAL}<|end_of_solution|>",
    "box alone": f"{DRAFT}\n<|begin_of_box|>{FINAL}<|end_of_box|>",
    "final response": f"Here are my reasoning steps:\n{DRAFT}\n[BEGIN FINAL RESPONSE]\n{FINAL}\n[END FINAL RESPONSE]",
    "phrase before a box of numbers": "dog <|begin_of_box|>[[10, 20, 300, 400]]<|end_of_box|>",
    "gpt-oss": f"<|channel|>analysis<|message|>{DRAFT}<|end|><|start|>assistant<|channel|>final<|message|>{FINAL}",
    "json in a json string": json.dumps(FINAL),
    "tool call": f'<tool_call>\n{{"name": "show", "arguments": {{"objects": {FINAL}}}}}\n</tool_call>',
}


@pytest.mark.parametrize("answer", THOUGHTFUL.values(), ids=THOUGHTFUL)
def test_boxes_in_thoughts_are_drafts(answer):
    [result] = Grounder(Recorded(answer))([example("one")], [Latents()])
    assert result.bbox == (Box(phrase="dog", box=(10, 20, 300, 400)),)


def test_an_answer_cut_off_in_its_list_keeps_its_boxes_and_one_cut_off_in_prose_has_none():
    grounder = Grounder(Recorded(""))
    for text in (FINAL[:-1] + ', {"bbox_2d": [12, 30, 40, 50], "label": "a bro', FINAL[:-1] + ",", "```json\n" + FINAL):
        assert len(grounder._read(Answer(text=text, cut_off=True)).bbox) == 1
    # Thoughts whose opening tag was in the prompt and whose closing tag never came.
    with pytest.raises(UnusableAnswer, match="cut off at the token limit"):
        grounder._read(Answer(text=f"Got it, the dog may be {FINAL}. But wait, the", cut_off=True))


def test_models_with_location_tokens_need_no_coordinates():
    florence = "a brown dog<loc_112><loc_250><loc_500><loc_875>"
    kosmos = "<phrase>a brown dog</phrase><object><patch_index_0259><patch_index_0879></object> on a sofa"
    for answer in (florence, kosmos):
        for coordinates in ("pixels", "thousandths"):
            [result] = Grounder(Recorded(answer), coordinates=coordinates)([example("one")], [Latents()])
            [box] = result.bbox
            assert box.phrase == "a brown dog"
            # Kosmos-2 knows 32 x 32 cells.
            assert all(abs(a - b) <= 1000 / 32 for a, b in zip(box.box, DOG.box, strict=True))


def test_boxes_in_a_loop_count_once_and_the_first_are_kept():
    entry = '{"bbox_2d": [%d, 0, 900, 900], "label": "thing"}'
    answer = "[" + ", ".join([entry % 1] * 5 + [entry % k for k in range(2, 9)]) + "]"
    [result] = Grounder(Recorded(answer), max_boxes=3)([example("one")], [Latents()])
    assert [box.box[0] for box in result.bbox] == [1, 2, 3]


NOTHING = [
    "[]",
    "[ ]",
    "[\n]",
    "{}",
    " []\n",
    "```json\n[]\n```",
    "```\n[]\n```",
    "```JSON\n[]\n```",
    "```json\r\n[]\r\n```",
]
NOTHING += [
    "```[]```",
    "［］",
    "[]<|im_end|>",
    "<think>No dog.</think>\n\n[]",
    "I see no objects:\n```json\n[]\n```\nSorry!",
]
NOTHING += ["Nothing of it is there.\r\n\r\n[]\r\n", '{"objects": []}', '```json\n{"objects": [], "count": 0}\n```']

NOTHING += ["[].", "`[]`", "Answer: []", "**Answer:** `[]`", "- []", "[{}]", '{"objects": null}', "```json\n[{}]\n```"]
NOTHING += ["There are no such things in the picture, so: []", "{'detections': None, 'count': 0}"]


@pytest.mark.parametrize("answer", NOTHING)
def test_nothing_found_is_an_answer(answer):
    assert Grounder(Recorded(answer))([example("one")], [Latents()]) == [Latents(bbox=())]


@pytest.mark.parametrize(
    "answer, reason",
    [
        ("", "empty answer"),
        ("<think>hm</think>", "empty answer"),
        ('<think>Maybe [{"bbox_2d": [1, 2, 3, 4], "label": "cat"}]', "empty answer, all of it thoughts"),
        ("a [] b", "no box in"),
        ("array[] x", "no box in"),
        ('{"label": null, "dog": true}', "no box in"),
        ('Objects: [{"bbox_2d": null, "label": "dog"}]', "boxes without four numbers"),
        ('[]\n[{"bbox_2d": [1, 2', "cut off by the end"),
        ('[{"bbox_2d": [1, 2, 3, 4] "label": "cat"}]', "not JSON"),
        ('<point x="61.5" y="40.6" alt="dog">dog</point>', "no box in"),
        ("There is a dog in the picture.", "no box in 'There is a dog"),
        ("I'm sorry, I can't do that.", "no box in"),
        (f"[{EMPTY_BOX}]", "boxes without an area"),
    ],
)
def test_answers_without_a_box_are_failures_with_the_reason(answer, reason):
    [result] = Grounder(Recorded(answer))([example("one")], [Latents()])
    assert isinstance(result, Failure) and result.segment == "bbox"
    assert reason in result.reason and "\n" not in result.reason


def test_the_question_names_the_caption_and_the_limit():
    model = Recorded("[]")
    Grounder(model, max_boxes=4)([example("one")], [Latents(text="not this")])
    [question] = model.questions
    assert "image one" in question.prompt and "at most 4 of them" in question.prompt
    assert '[{"bbox_2d": [x1, y1, x2, y2], "label"' in question.prompt and "not this" not in question.prompt


def test_metadata_tells_what_changes_the_boxes():
    model = Recorded("[]")
    seen = [
        Grounder(model, **how).metadata
        for how in ({}, {"coordinates": "pixels"}, {"max_boxes": 3}, {"image_size": 56}, {"instruction": "caption"})
    ]
    assert len({tuple(sorted(metadata.items())) for metadata in seen}) == 5
