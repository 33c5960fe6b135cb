"""The command line as people use it: flags, places, devices and locales that do not fit end in one line and code 2."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from kaleido_jax import main, verbs
from kaleido_jax.errors import UserError
from kaleido_jax.runtime.devices import check_backend
from kaleido_jax.verbs.verb import CONFIG, WORKDIR, Flag

REPO = Path(__file__).parent.parent
EMOJI = "--config=emoji_combined"


def command(*args, **environment):
    """(exit code, stderr) of a command in a new process."""
    done = subprocess.run(
        [sys.executable, "-m", "kaleido_jax.main", *args],
        cwd=REPO,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    return done.returncode, done.stderr


@pytest.fixture
def called(monkeypatch):
    """A verb `greet` from outside the package; the list of what its run() was called with."""
    calls = []
    verb = SimpleNamespace(
        HELP="say hello",
        FLAGS=(
            CONFIG,
            dataclasses.replace(WORKDIR, missing=""),
            Flag(name="to", value="NAME", help="whom to greet", missing="name somebody", words=("you", "me")),
            Flag(name="few", value="N", help="fewer captions", sets="sample.images_per_caption", bare="1"),
        ),
        run=lambda **arguments: calls.append(arguments),
    )
    monkeypatch.setattr(verbs, "VERBS", dict(verbs.VERBS))
    monkeypatch.setattr(main, "VERBS", verbs.VERBS)
    monkeypatch.setattr(main, "start_logging", lambda: None)
    verbs.register("greet", verb)
    return calls


def test_a_verb_from_outside_has_flags_help_and_a_config(called, capsys):
    main.main(["greet", EMOJI, "--to=you", "--few", "--config.train.num_steps=3"])
    config = called[0]["config"]
    assert called == [{"config": config, "workdir": None, "to": "you"}]
    assert (config.train.num_steps, config.sample.images_per_caption) == (3, 1)
    main.main(["--help"])
    assert "greet      say hello" in (message := capsys.readouterr().out) and "greet: whom to greet" in message
    main.main(["greet", "--help"])
    assert "whom to greet" in (message := capsys.readouterr().out) and "annotate" not in message
    for flags, reason in (
        (["--to=him"], "--to=him; expected one of you, me"),
        ([], "no --to; expected --to=NAME; name somebody"),
        (["--two=1"], "unknown flag --two=1; expected --config=, --workdir=, --to=, --few="),
    ):
        with pytest.raises(UserError, match=reason):
            main.main(["greet", EMOJI, *flags])
    with pytest.raises(UserError, match="did you mean 'greet'"):
        main.main(["gret"])


def test_a_repeated_flag_comes_as_a_list(called, capsys):
    verbs.VERBS["greet"].FLAGS += (Flag(name="word", value="TEXT", repeated=True, help="one of the words"),)
    main.main(["greet", EMOJI, "--to=you", "--word=a, b=c", "--word="])
    assert called[0]["word"] == ["a, b=c", ""]
    main.main(["greet", EMOJI, "--to=you"])
    assert called[1]["word"] is None
    with pytest.raises(UserError, match="unknown flag --word; expected"):
        main.main(["greet", EMOJI, "--to=you", "--word"])
    with pytest.raises(UserError, match="unknown flag --words=a; expected"):
        main.main(["greet", EMOJI, "--to=you", "--words=a"])


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--to=", "--to= without a value; expected --to=NAME; name somebody"),
        ("--few=", "--few= without a value; expected --few=N; write it, or leave the flag out"),
        ("--workdir=", "--workdir= without a value; expected --workdir=DIR; write it, or leave the flag out"),
        ("--config=", "--config= without a value; expected --config=NAME; name a config"),
    ],
)
def test_a_flag_whose_value_is_empty_is_not_taken_for_one_that_is_left_out(flag, message, called):
    with pytest.raises(UserError, match=message):
        main.main(["greet", EMOJI, "--to=me", flag])


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--gamma=1;4", "--gamma=1;4; expected a number or several, such as 1,4,8"),
        ("--gamma=4,", "expected a number or several"),
        ("--gamma=4,inf", "sample.gamma"),
        ("--seed=-1", "--seed=-1; expected a whole number"),
        ("--seed=4294967296", "seed = 4294967296; expected"),
        ("--seed=" + "1" * 5000, "expected a whole number"),
        ("--config.sample.captions=(car,sunflower)", "expected a tuple such as ('a', 'b')"),
        ("--captions=car", "unknown flag --captions=car; expected"),
    ],
)
def test_what_sample_is_asked_for_is_checked_first(tmp_path, flag, message, monkeypatch):
    monkeypatch.setattr(main, "start_logging", lambda: None)
    with pytest.raises(UserError) as caught:
        main.main(["sample", "--model=emoji-tiny", f"--workdir={tmp_path}", flag])
    assert message in str(caught.value) and not list(tmp_path.iterdir())


def test_keyed_flags_come_as_a_dict_in_their_order(called, capsys):
    verbs.VERBS["greet"].FLAGS += (Flag(name="say", value="WHOM=WHAT", keyed=True, help="words for somebody"),)
    main.main(["greet", EMOJI, "--to=me", "--say.a.0=x=y", "--say.b=", "--say.a.0=z"])
    assert called[0]["say"] == {"b": "", "a.0": "z"} and list(called[0]["say"]) == ["b", "a.0"]
    main.main(["greet", EMOJI, "--to=me"])
    assert called[1]["say"] is None
    verbs.VERBS["greet"].FLAGS += (Flag(name="tell", value="WHOM,SAYING=WHAT", keyed=True, help="many"),)
    main.main(["greet", "--help"])
    assert "--say.WHOM=WHAT" in (message := capsys.readouterr().out) and "WHOM,SAYING=WHAT greet: many" in message
    for flag in ("--say=x", "--say.=x", "--say.a", "--to.a=x"):
        with pytest.raises(UserError, match=rf"unknown flag {flag}; expected .*--say.WHOM=WHAT"):
            main.main(["greet", EMOJI, "--to=me", flag])


def test_the_last_of_two_equal_flags_wins(called):
    main.main(["greet", EMOJI, "--to=me", "--workdir=a", "--few=3", "--to=you", "--workdir=b", "--few=2"])
    assert (called[0]["to"], called[0]["workdir"]) == ("you", Path("b"))
    assert called[0]["config"].sample.images_per_caption == 2


def test_a_tilde_is_the_home_folder_in_flags(called, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text((REPO / "configs" / "emoji_combined.py").read_text())
    main.main(["greet", "--config=~/mine.py", "--to=me", "--workdir=~/runs/x"])
    assert called[0]["workdir"] == tmp_path / "runs" / "x"
    with pytest.raises(UserError, match="--workdir=~nobody.here/x; expected the home folder"):
        main.main(["greet", EMOJI, "--to=me", "--workdir=~nobody.here/x"])


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(13, "Permission denied", "/x"),
        OSError(28, "No space left on device", "/x"),
        OSError("no text\nin two lines"),
    ],
)
def test_what_the_machine_refuses_is_one_line(error, monkeypatch, capsys):
    def refuse(argv):
        raise error

    monkeypatch.setattr(main, "main", refuse)
    with pytest.raises(SystemExit, match="2"):
        main.run()
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "expected a readable and writable path" in message
    assert error.filename is None or message.startswith(f"kaleido_jax: error: /x: {error.strerror};")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_nobody_reads_any_more_is_one_line(unbuffered):
    command, env = [sys.executable, "-m", "kaleido_jax.main", "--help"], os.environ | {"PYTHONUNBUFFERED": unbuffered}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=REPO, env=env, **pipes) as process:
        process.stdout.close()  # as `| head` does, before anything is written
        message = process.stderr.read()
    assert process.returncode == 2 and message.count("\n") == 1
    assert message.startswith("kaleido_jax: error: broken pipe: the program that read the output has ended; expected")


def test_places_where_nothing_can_be_written_are_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "file", tmp_path / "file" / "sub", tmp_path / ("x" * 300)):
        monkeypatch.setattr(sys, "argv", ["kaleido_jax", "annotate", EMOJI, f"--workdir={workdir}"])
        with pytest.raises(SystemExit, match="2"):
            main.run()
        message = capsys.readouterr().err.splitlines()
        assert message[-1].startswith("kaleido_jax: error: ") and "Traceback" not in "".join(message)


@pytest.mark.parametrize("platforms", ["cuda", "CPU", "nonsense"])
def test_platforms_that_are_not_there_are_one_line(platforms):
    code, message = command("plan", "--config=emoji_combined", JAX_PLATFORMS=platforms)
    assert code == 2 and message.count("\n") == 1
    assert f"JAX_PLATFORMS={platforms}, for which this machine has no device; expected one of cpu" in message


def test_platforms_that_are_there_are_taken(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    check_backend()


def test_a_locale_without_utf8_is_asked_to_be_another():
    code, message = command("plan", "--config=emoji_combined", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert code == 2 and message == (
        "kaleido_jax: error: a locale with the encoding ascii; expected UTF-8; set LC_ALL=C.UTF-8 or PYTHONUTF8=1\n"
    )


def test_flags_that_are_no_text_are_refused():
    with pytest.raises(UserError, match="expected text in UTF-8"):
        main.main([EMOJI, "--workdir=caf\udce9"])


def test_training_without_records_is_refused_before_it_starts(tmp_path):
    with pytest.raises(UserError, match="no records in .*; make them with `annotate`"):
        main.main(["--config=own_pictures", "--config.data.source=folder", f"--workdir={tmp_path / 'w'}"])
    assert not (tmp_path / "w").exists()


def test_a_protocol_that_reads_scenes_of_emoji_is_refused_for_other_data(tmp_path):
    with pytest.raises(UserError, match="eval.protocol = 'emoji' with config.data.source = 'folder'"):
        main.main([EMOJI, "--config.data.source=folder", f"--workdir={tmp_path / 'w'}"])
    assert not (tmp_path / "w").exists()


def test_a_workdir_needs_no_config_once_it_has_one(tmp_path, monkeypatch):
    (tmp_path / "config.py").write_text(
        "from kaleido_jax.config import base_config\ndef get_config():\n    return base_config('own_pictures')\n"
    )
    seen = {}
    monkeypatch.setattr(verbs.VERBS["train"], "run", lambda **arguments: seen.update(arguments))
    main.main([f"--workdir={tmp_path}", "--num_processes=1", "--config.train.num_steps=7"])
    assert seen["config"].name == "own_pictures" and seen["config"].train.num_steps == 7
    for wrong, said in (("config = Unet()", "line 2: NameError"), ("x: return", "line 2: SyntaxError")):
        (tmp_path / "config.py").write_text(f"def get_config():\n    {wrong}\n")
        with pytest.raises(UserError, match=rf"config.py, {said}.*; correct it"):
            main.main([f"--workdir={tmp_path}"])


@pytest.mark.parametrize("verb", ["train", "annotate", "sample", "evaluate", "plan"])
def test_every_verb_says_where_a_config_may_come_from(verb, tmp_path):
    with pytest.raises(UserError, match="no --config; .* or a --workdir that has one"):
        main.main([verb, f"--workdir={tmp_path}"])


def test_a_start_that_the_records_refuse_claims_no_workdir(tmp_path):
    flags = ["--config.data.source=records", "--config.train.sample_at_end=False", f"--workdir={tmp_path / 'w'}"]
    with pytest.raises(UserError, match="no records in"):
        main.main([EMOJI, *flags])
    assert not (tmp_path / "w" / "config.json").exists()
