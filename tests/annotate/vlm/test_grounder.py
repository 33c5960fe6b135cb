import pytest
from test_captioner import Recorded

from kaleido_jax.annotate.annotator import Failure
from kaleido_jax.annotate.vlm.grounder import Grounder
from kaleido_jax.latents.segments.bbox import Box
from kaleido_jax.latents.types import Latents
from tests.annotate.vlm.openai_server import example

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


def test_models_with_tokens_for_places_need_no_coordinates():
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


@pytest.mark.parametrize("answer", ["[]", "```json\n[]\n```"])
def test_nothing_found_is_an_answer(answer):
    assert Grounder(Recorded(answer))([example("one")], [Latents()]) == [Latents(bbox=())]


@pytest.mark.parametrize(
    "answer, reason",
    [
        ("", "empty answer"),
        ("<think>hm</think>", "empty answer"),
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
