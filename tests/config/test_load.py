"""Configs by name, path, JSON and flags, and what is said of a file that goes wrong."""

import json

import pytest

from kaleido_jax.config import Config, base_config, load_config
from kaleido_jax.config.load import config_from_flags
from kaleido_jax.errors import UserError
from tests.tiny import tiny_config


def refusal(spec, *flags):
    """The one line of found, expected and what to do."""
    with pytest.raises(UserError) as error:
        config_from_flags(str(spec), flags)
    assert "\n" not in str(error.value) and str(error.value).count(";") >= 2
    return str(error.value)


def test_a_config_is_found_by_name_from_any_folder(tmp_path, monkeypatch):
    by_path = load_config("configs/emoji_combined.py")
    monkeypatch.chdir(tmp_path)
    assert load_config("emoji_combined") == by_path
    assert load_config("cc12m:text").latents.segments == ("text",)
    assert "did you mean emoji_combined?" in refusal("emojy_combined")
    assert f"no config in the folder {tmp_path}; expected config.json in it" in refusal(tmp_path)
    assert "did you mean emoji_combined?" in refusal(tmp_path / "emojy_combined")  # beside no config at all


def test_keywords_change_fields_and_unknown_ones_name_the_nearest():
    config = load_config("imagenet_combined", **{"train.num_steps": 1_000, "model.denoiser.inner.remat": "dots"})
    assert config.train.num_steps == 1_000 and config.model.denoiser.inner.remat == "dots"
    with pytest.raises(UserError, match=r"unknown config key 'train.numsteps'; expected 'train.num_steps'"):
        load_config("emoji_combined", **{"train.numsteps": 3})
    with pytest.raises(UserError, match="no field below config.model.denoiser.inner.inner = None"):
        load_config("imagenet_combined", **{"model.denoiser.inner.inner.image_size": 3})


def test_the_last_of_two_equal_flags_wins_whatever_its_type():
    config = config_from_flags(
        "emoji_combined",
        [
            "--config.sample.captions=('bug','bird')",
            "--config.train.batch_size=3",
            "--config.sample.captions=('fruit',)",
            "--config.train.batch_size=4",
        ],
    )
    assert config.sample.captions == ("fruit",) and config.train.batch_size == 4


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("sample.captions=bug", ("bug",)),
        ("sample.captions=a red bug, worn", ("a red bug, worn",)),
        ("sample.captions=('a','b')", ("a", "b")),
        ("sample.captions=['a']", ("a",)),
        ("sample.captions=('a',\n 'b')", ("a", "b")),
        ("sample.captions=sea animal,bug", ("sea animal,bug",)),
        ("sample.captions='a red bug'", ("a red bug",)),
        ("sample.captions=the 'red' 'bug'", ("the 'red' 'bug'",)),
        ("sample.captions=5", ("5",)),
        ("sample.captions=()", ()),
        ("sample.guidance_interval=(0,5)", (0.0, 5.0)),
        ("sample.grammar=True", True),
        ("sample.gamma=3", 3.0),
        ("sample.autoguidance_workdir=None", None),
    ],
)
def test_a_flag_is_read_as_its_field_wants_it(flag, value):
    key = flag.split("=")[0].split(".")[1]
    assert getattr(config_from_flags("emoji_combined", [f"--config.{flag}"]).sample, key) == value


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("sample.captions=(car,sunflower)", "a tuple such as ('a', 'b')"),
        (
            "sample.captions=('sea animal' 'bug')",
            "without a comma between 'sea animal' and 'bug'; expected a tuple such",
        ),
        ("sample.captions=['a', 'b'\n 'c']", "without a comma between 'b' and 'c'"),
        ("sample.captions='a' \"b\"", "without a comma between 'a' and \"b\""),
        ("latents.segments=('text' 'bbox')", "without a comma between 'text' and 'bbox'"),
        ("model.denoiser.channels=many", "a tuple such as (1, 2)"),
        ("sample.grammar=maybe", "expected bool"),
        ("train.num_steps=1e3", "expected int"),
        ("train=3", "a field below it"),
        ("train.num_steps.x=3", "no field below config.train.num_steps"),
        ("sample.gamma", "without a value"),
    ],
)
def test_a_flag_that_cannot_be_read_is_refused(flag, message):
    assert message in refusal("emoji_combined", f"--config.{flag}")


RAISES = {
    "raise RuntimeError('x')": "line 3: RuntimeError: x",
    "1 / 0": "line 3: ZeroDivisionError: division by zero",
    "[][1]": "line 3: IndexError",
    "assert False": "line 3: AssertionError",
    "open('/nope')": "line 3: FileNotFoundError",
    "inner = Unet(image_size=3)": "line 3: NameError: name 'Unet' is not defined",
    "config = (1,": "line 3: SyntaxError: '(' was never closed",
    "raise SystemExit('bye')": "line 3: SystemExit: bye",
    "from kaleido_jax.config import nothing": "line 3: ImportError: cannot import name 'nothing' from 'kaleido_jax.",
    "return None": "returns None; expected a config; end it with return config",
    "default_config().train.batch_size = '16'": "line 3: TypeError: Could not override field 'batch_size'",
    "return type(default_config())": "returns <class 'ml_collections.",
    "return config_dict.create(x=config_dict.required_placeholder(int))": "RequiredValueError: None value found",
    "return base_config('cc12m:none')": "cc12m.py:none; expected one of text",
}


@pytest.mark.parametrize("statement", RAISES)
def test_a_config_file_that_raises_is_one_line_with_its_place(statement, tmp_path):
    file = tmp_path / "mine.py"
    imports = "from ml_collections import config_dict; from kaleido_jax.config import base_config, default_config"
    file.write_text(f"{imports}\ndef get_config():\n    {statement}\n")
    message = refusal(file)
    assert RAISES[statement] in message
    assert "Traceback" not in message and "site-packages" not in message and "/kaleido_jax/" not in message


def test_a_misspelled_field_in_a_file_names_the_nearest(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from kaleido_jax.config import default_config\ndef get_config():\n    config = default_config()\n"
        "    config.model.denoiser.chanels = 3\n    return config\n"
    )
    assert "'model.denoiser.chanels'; expected 'model.denoiser.channels'" in refusal(file)


def test_arguments_of_get_config(tmp_path):
    assert "which takes no argument; remove ':foo'" in refusal("configs/imagenet_combined.py:foo")
    assert "emoji-tiny, which takes no argument; remove ':64'" in refusal("emoji-tiny:64")  # a config.json
    assert "expected one of text, bbox, blob, voken, combined" in refusal("configs/cc12m.py:foo")
    (tmp_path / "needs.py").write_text("def get_config(size): ...\n")
    assert "needs.py:SIZE; name the argument" in refusal(tmp_path / "needs.py")
    (tmp_path / "none.py").write_text("x = 1\n")
    assert "without get_config()" in refusal(tmp_path / "none.py")


def test_a_colon_in_a_path_that_exists_is_no_argument(tmp_path):
    folder = tmp_path / "12:30"
    folder.mkdir()
    (folder / "mine.py").write_text(
        "from kaleido_jax.config import base_config\ndef get_config(latents='text'):\n"
        "    return base_config(f'cc12m:{latents}')\n"
    )
    assert load_config(folder / "mine.py").latents.segments == ("text",)
    assert load_config(f"{folder}/mine.py:blob").latents.segments == ("blob",)


def test_a_stored_config_comes_back_and_works_as_a_config(tmp_path):
    config = tiny_config(sample__guidance_interval=(0.3, 5.0))
    (tmp_path / "config.json").write_text(config.to_json())
    assert Config.from_json(config.to_json()) == config
    assert Config.from_json(tmp_path) == Config.from_json(tmp_path / "config.json") == config
    assert load_config(tmp_path / "config.json") == load_config(tmp_path) == config
    changed = config_from_flags(f"{tmp_path}/config.json", ["--config.train.num_steps=7"])
    assert changed.train.num_steps == 7 and changed.model == config.model


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "holds []"),
        ("null", "holds None"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        (json.dumps({"train": {"batchsize": 3}}), "'train.batchsize'; expected 'train.batch_size'"),
        (json.dumps({"train": {"learning_rate": float("nan")}}), "config.train.learning_rate = nan"),
        (json.dumps({"train": 5}), "config.train = 5; expected a group of fields"),
        (json.dumps({"data": {"root": "a\0b"}}), "text without a NUL"),
        (json.dumps({"sample": {"captions": ["\ud83d"]}}), "text in UTF-8"),
    ],
)
def test_json_that_is_no_config_is_one_line(text, message, tmp_path):
    (tmp_path / "config.json").write_text(text)
    assert message in refusal(tmp_path / "config.json")


def test_json_that_an_editor_on_windows_saved_is_read(tmp_path):
    path, text = tmp_path / "config.json", tiny_config(name="x").to_json()
    path.write_text(text, encoding="utf-8-sig")
    assert load_config(path) == Config.from_json(path) == Config.from_json("\ufeff" + text) == tiny_config(name="x")


def test_a_config_builds_on_another_one():
    config = base_config("cc12m:blob")
    config.train.num_steps = 3
    assert config.latents.segments == ("blob",)
