"""Prompts for vision-language models: two instructions for descriptions, two for boxes (paper, appendix A).

The words are ours. What they ask for is the paper's: 50 to 80 words for `text`, boxes of what a caption mentions for
`bbox`.
"""

import re

from kaleido_jax.runtime.files import fingerprint

MIN_WORDS, MAX_WORDS = 50, 80  # of a description, as the paper asks for

_CLOSING = f"""\
- where this takes place: the setting, the background and the surroundings;
- colors, light, composition and style;
- any writing, symbol or logo, with its words.

Tell what matters most in one coherent paragraph of {MIN_WORDS} to {MAX_WORDS} words. Make no list. \
Write in English, and write nothing but the description."""

TEXT = {
    "caption": f"""\
Look at the picture. It was published with this caption:

{{caption}}

Describe the picture for somebody who cannot see it. Keep all that the caption tells and add what you see:
- the names, objects, events and places that the caption mentions, by these names; where the caption hides a name \
behind a placeholder, write what can be seen instead ("a woman"), never a tag such as <PERSON>;
- people, characters, animals and other notable things;
{_CLOSING}""",
    "label": f"""\
Look at the picture. It has been labeled:

{{caption}}

Describe the picture for somebody who cannot see it:
- every labeled object: its size, its shape and where it is;
- how the objects lie to each other: what is near what, how they are arranged;
- what they do with each other, or what they are evidently for;
- their colors, textures and design;
- people, animals and other notable things;
{_CLOSING}""",
}

BBOX = {
    # The form that Qwen2.5-VL and Qwen3-VL were trained to answer in; others follow it as well.
    "json": """\
Look at the picture. It is said to show this:

{caption}

Find the things that an English caption of the picture would mention, the most important first, at most {max_boxes} of \
them. Answer with a JSON list, one entry for each thing, and with nothing else:
[{"bbox_2d": [x1, y1, x2, y2], "label": "a few words that tell this thing from the others"}]
(x1, y1) is the top left corner of its bounding box and (x2, y2) the bottom right one.""",
    # Qwen-VL's own task: a caption in which each object carries its box in tags.
    "caption": "Generate the caption in English with grounding:",
}

# A caption of an anonymized data set is full of tags, which models tend to copy.
_PERSON = re.compile(r"<\s*person\s*>|\[\s*person\s*\]", re.IGNORECASE)
# Markup, and what a model's processor would take for its own special tokens, e.g. <image> or <|im_end|>.
_TAG = re.compile(r"<[^<>]*>")


def fill(template: str, caption: str, **numbers: int) -> str:
    """The prompt about one image.

    Args:
      template: text with {caption} and the names of `numbers` in braces; other braces stay as they are.
      caption: of any content; it becomes one line, an anonymized name becomes "a person", other tags are removed.
      **numbers: what else to put in.
    """
    for name, number in numbers.items():
        template = template.replace(f"{{{name}}}", str(number))
    # Last, so that nothing in a user's caption is replaced.
    caption = _TAG.sub(" ", _PERSON.sub("a person", caption)).encode(errors="ignore").decode()  # no lone surrogates
    return template.replace("{caption}", " ".join(caption.split()))


def prompt_hash(template: str) -> str:
    """16 hex digits that change with any letter of the template; stored with every record."""
    return fingerprint(template)
