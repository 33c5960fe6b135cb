"""The studio over HTTP: who may ask, how much, and the same bytes as everywhere else."""

import base64
import concurrent.futures
import copy
import dataclasses
import functools
import io
import json
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from kaleido_jax.config.load import MODELS
from kaleido_jax.errors import UserError
from kaleido_jax.sampling.pipeline import KaleidoPipeline
from kaleido_jax.sampling.recipe import load_recipe
from kaleido_jax.studio.engine import Engine, check_model, grouped, label_of
from kaleido_jax.studio.guard import HEADERS, refuse
from kaleido_jax.studio.jobs import Job, OtherModel
from kaleido_jax.studio.requests import LIMITS, parse
from kaleido_jax.studio.serve import listen
from kaleido_jax.verbs import studio as studio_verb
from tests.sampling.test_call import CONFIG, pipe  # noqa: F401


class Echo:
    """An engine that answers with the request."""

    def load(self):
        pass

    def describe(self):
        return {"name": "echo"}

    def check_weights(self, shown):
        if shown == "others":
            raise OtherModel("the server has another model now; reload the page")

    def work(self, job):
        return {"caption": job.request.caption}


@pytest.fixture(scope="module")
def echo(start_studio):
    return start_studio(Echo())


@pytest.mark.parametrize("host", ["127.0.0.1:1", "localhost:7860", "[::1]:80", "localhost"])
def test_this_machine_may_ask(host):
    assert refuse({"host": host}, "/api/model") is None
    assert refuse({"host": host, "origin": f"http://{host}", "sec-fetch-site": "same-origin"}, "/api/model") is None


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"host": ""},
        {"host": "evil.example"},
        {"host": "127.0.0.1.evil.example:80"},
        {"host": "localhost@evil.example"},
        {"host": "[::1"},
        {"host": "10.0.0.1:7860"},
        {"host": "localhost:1", "origin": "http://evil.example"},
        {"host": "localhost:1", "origin": "http://localhost:2"},
        {"host": "localhost:1", "origin": "null"},
        {"host": "localhost:1", "sec-fetch-site": "cross-site"},
        {"host": "localhost:1", "sec-fetch-site": "same-site"},
    ],
)
def test_others_may_not(headers):
    status, message = refuse(headers, "/api/model")
    assert status == 403 and "expected" in message


def test_every_answer_has_the_headers_of_a_safe_page(echo):
    client = echo()
    for path in ("/", "/static/app.js", "/api/model", "/nothing"):
        client.ask("GET", path)
        assert {name: client.headers.get(name) for name in HEADERS} == HEADERS, path
    client.ask("GET", "/", headers={"Host": "evil.example"})
    assert {name: client.headers.get(name) for name in HEADERS} == HEADERS


@pytest.mark.parametrize(
    "path",
    ["/static/../server.py", "/static/..%2fserver.py", "/static/%2e%2e/server.py", "/static//etc/passwd", "/static/"],
)
def test_no_file_but_the_pages_own(echo, path):
    assert echo().ask("GET", path)[0] == 404


def test_bodies_are_limited_and_of_one_type(echo):
    client = echo()
    assert client.ask("POST", "/api/generate", {"caption": "a" * LIMITS["request_bytes"]})[0] == 413
    assert client.ask("POST", "/api/generate", b"{}")[0] == 415
    assert client.ask("POST", "/api/recipe", {})[0] == 415
    assert client.ask("POST", "/api/recipe", b"x" * (LIMITS["recipe_bytes"] + 1))[0] == 413
    status, value = client.ask("POST", "/api/recipe", b"\x89PNG broken")
    assert status == 422 and "\n" not in value["message"]
    assert client.ask("GET", "/api/generate")[0] == 405


def test_a_page_of_other_weights_is_told_to_reload(echo):
    client, others = echo(), {"Kaleido-Weights": "others"}
    for path, body in (("generate", {"caption": "bird"}), ("modes", {"caption": "bird"}), ("recipe", b"{}")):
        status, value = client.ask("POST", f"/api/{path}", body, others)
        assert status == 409 and value["message"].endswith("reload the page")
    assert client.ask("POST", "/api/generate", {"caption": "bird"}, {"Kaleido-Weights": "these"})[0] == 202


def test_no_other_sessions_jobs(echo):
    one, other = echo(), echo()
    status, value = one.ask("POST", "/api/generate", {"caption": "mine"})
    assert status == 202 and one.news(value["job"])[-1] == ("done", {"caption": "mine"})
    for client in (other, echo()):
        assert client.ask("GET", f"/api/jobs/{value['job']}/events")[0] == 404
        assert client.ask("DELETE", f"/api/jobs/{value['job']}")[0] == 404
    forged = echo()
    forged.cookie = "kaleido_1=../../x; other=" + "a" * 32
    assert forged.ask("GET", f"/api/jobs/{value['job']}/events")[0] == 404


def test_200_requests_at_once_are_each_answered(echo):
    client = echo()
    client.ask("GET", "/")

    def one(i):
        return client.ask("POST", "/api/generate", {"caption": f"number {i}"})

    with concurrent.futures.ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(one, range(200)))
    assert {status for status, _ in answers} <= {202, 429, 503}
    assert all("message" in value for status, value in answers if status != 202)
    end = time.monotonic() + 60  # for what still waits of them
    while (found := client.result("generate", {"caption": "after"}))[0] == "refused" and time.monotonic() < end:
        time.sleep(0.05)
    assert found == ("done", {"caption": "after"})


# ------------------------------------------------------------------------------------------ with the package's model
@pytest.fixture(scope="module")
def model():
    return KaleidoPipeline.from_pretrained("emoji-tiny")


@pytest.fixture(scope="module")
def studio(start_studio):
    return start_studio(Engine(MODELS / "emoji-tiny", MODELS / "emoji-tiny-baseline"))


@pytest.fixture(scope="module")
def client(studio):
    client = studio()
    client.ask("GET", "/")
    return client


@pytest.fixture(scope="module")
def drawn(client):
    body = {"caption": "fruit", "variations": 2, "seed": 3, "settings": {"num_steps": 4}}
    kind, result = client.result("generate", body)
    assert kind == "done", result
    return result["images"]


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(png(data))).convert("RGB"))


def png(data):
    return base64.b64decode(data.removeprefix("data:image/png;base64,"))


@pytest.mark.slow
def test_the_same_bytes_in_studio_pipe_and_edit(client, drawn, model, tmp_path):
    for i, image in enumerate(drawn):
        (tmp_path / "saved.png").write_bytes(png(image["png"]))
        recipe = load_recipe(tmp_path / "saved.png")
        assert recipe == image["recipe"] and recipe["rows"][0]["noise_indices"] == [i]
        np.testing.assert_array_equal(model.draw(recipe).pixels[0, 0], pixels(image["png"]))
    out = model(["fruit"] * 2, seed=3, num_steps=4)
    assert [z.to_json() for z in out.latents] == [image["latents"] for image in drawn]
    np.testing.assert_array_equal(model.draw(out.recipe_of(1, 0)).pixels[0, 0], pixels(drawn[1]["png"]))

    loaded = client.ask("POST", "/api/recipe", png(drawn[0]["png"]))[1]["recipe"]
    kind, result = client.result("draw", {"recipe": loaded})
    assert kind == "done" and result["images"][0]["matches"] is True
    assert result["images"][0]["png"] == drawn[0]["png"]

    edit = {"bbox": [{"phrase": drawn[0]["latents"]["bbox"][0]["phrase"], "box": [100, 100, 500, 500]}]}
    kind, result = client.result("edit", {"recipe": loaded, "latents": edit})
    edited = model.edit(loaded, bbox=edit["bbox"] and load_latents(edit).bbox)
    assert kind == "done" and result["messages"] == edited.messages
    np.testing.assert_array_equal(np.asarray(edited.after), pixels(result["image"]["png"]))
    np.testing.assert_array_equal(np.asarray(edited.difference), pixels(result["difference"]))
    assert result["before"]["png"] == drawn[0]["png"]


def load_latents(value):
    from kaleido_jax.latents.types import Latents

    return Latents.from_json(value)


@pytest.mark.slow
def test_news_come_in_order_and_a_cancelled_job_stops(client):
    status, value = client.ask("POST", "/api/generate", {"caption": "bird", "settings": {"num_steps": 4}})
    kinds = [kind for kind, _ in client.news(value["job"])]
    assert kinds[-1] == "done" and kinds.index("latents") < kinds.index("progress")
    status, value = client.ask("POST", "/api/generate", {"caption": "bird", "settings": {"num_steps": 1000}})
    assert client.ask("DELETE", f"/api/jobs/{value['job']}") == (200, {})
    assert client.news(value["job"])[-1] == ("cancelled", {})


@pytest.mark.slow
def test_an_edit_shows_the_picture_after_it_forming_and_not_the_one_before(client, drawn):
    body = {"recipe": drawn[0]["recipe"], "latents": {"bbox": [{"phrase": "apple", "box": [100, 100, 500, 500]}]}}
    news = dict(client.news(client.ask("POST", "/api/edit", body)[1]["job"]))
    assert "done" in news and (news["progress"]["step"], news["progress"]["of"]) == (8, 8)
    assert len(news["progress"]["previews"]) == 1


@pytest.mark.parametrize(
    ("config", "files", "line"),
    [
        (None, ["photo.jpg"], "config.json cannot be read"),
        ("{}", [], "no checkpoint in .*; expected .*/checkpoints/<step>; train first, or correct the path"),
        ("{}", ["checkpoints/10_old/x"], "no checkpoint in"),
        ("{}", ["model.safetensors"], "model.safetensors is damaged"),
        ('{"model": {"denoiser": null, "point_denoiser": {}}}', ["checkpoints/10/x"], "a model of points; expected"),
    ],
)
def test_what_is_no_model_is_refused_before_the_page_is_there(tmp_path, monkeypatch, config, files, line):
    if config:
        (tmp_path / "config.json").write_text(config)
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"?")
    monkeypatch.setattr("kaleido_jax.studio.serve.listen", lambda port: pytest.fail("it listens"))
    with pytest.raises(UserError, match=line):
        studio_verb.run(str(tmp_path), None, 0)


@pytest.mark.parametrize("model", sorted(MODELS.glob("emoji-*")), ids=lambda path: path.name)
def test_the_packages_models_may_be_shown(model):
    check_model(model)


def test_a_problem_with_the_model_is_logged_too(tmp_path, caplog):
    engine = Engine(tmp_path)
    engine.load()
    assert "config.json cannot be read" in engine.describe()["problem"]
    assert engine.describe()["problem"] in caplog.text


def test_an_error_that_nobody_expects_while_loading_is_told(monkeypatch):
    def fail(model, chunk):
        raise ZeroDivisionError

    monkeypatch.setattr(KaleidoPipeline, "from_pretrained", fail)
    engine = Engine("anything")
    with pytest.raises(ZeroDivisionError):
        engine.load()
    assert engine.describe()["waiting"] == "" and "terminal" in engine.describe()["problem"]
    with pytest.raises(UserError, match="terminal"):
        engine.work(Job("session", None))


def test_a_baseline_that_cannot_be_loaded_is_told_and_the_model_is_compiled(pipe, monkeypatch, caplog):  # noqa: F811
    def open_it(model, chunk):
        if model == "model":
            return pipe
        raise UserError("no config.json there")

    monkeypatch.setattr(KaleidoPipeline, "from_pretrained", open_it)
    engine = Engine("model", "baseline")
    engine.load()
    about = engine.describe()
    assert (about["baseline"], about["problem"], about["waiting"]) == (None, "", "")
    assert about["baseline_problem"] == "no baseline: no config.json there" and about["baseline_problem"] in caplog.text
    assert engine._compiled


@pytest.fixture
def ready(pipe):  # noqa: F811
    """A function that gives an engine with random weights one request, as if it were ready, and returns the result."""
    engine = Engine("anything")
    engine._pipeline, engine.waiting = pipe, ""
    engine._ready.set()

    def work(name, body):
        return engine.work(Job("session", parse(name, json.dumps(body).encode())))

    work.engine = engine
    return work


def test_a_recipe_without_a_younger_setting_is_drawn_and_edited(ready):
    recipe = ready("generate", {"caption": "fruit", "settings": {"num_steps": 1}})["images"][0]["recipe"]
    for younger in ("cads_mix", "sampler", "gamma"):
        older = copy.deepcopy(recipe)
        del older["sample"][younger]
        assert ready("draw", {"recipe": older})["images"][0]["recipe"]["sample"].keys() == recipe["sample"].keys()
    assert ready("edit", {"recipe": older, "latents": {"voken": [1, 2, 3, 4]}})["image"]["png"]


def test_a_request_that_waited_for_a_model_is_of_that_model_or_refused(ready):
    """The page may be faster than the server that was started again: its weights are known when they are loaded."""
    engine, request = ready.engine, parse("modes", b'{"caption": "fruit", "count": 1}')
    engine._weights, engine._pipeline, pipe = "a" * 16, None, engine._pipeline  # noqa: F811
    engine.check_weights("b" * 16)
    engine._pipeline = pipe
    for weights in ("", "a" * 16):
        assert engine.work(Job("session", request, weights))["count"] == 1
    with pytest.raises(OtherModel, match=f"another model now .{pipe.config.name}, step 7.; reload"):
        engine.work(Job("session", request, "b" * 16))


def test_a_baseline_has_no_modes_and_says_so(ready):
    config = dataclasses.replace(CONFIG, latents=dataclasses.replace(CONFIG.latents, segments=()))
    pipe = ready.engine._pipeline  # noqa: F811
    params = {part: pipe.params[part] for part in ("encoder", "denoiser")}
    ready.engine._pipeline = KaleidoPipeline(config, params, pipe.codec)
    with pytest.raises(UserError, match="a baseline; expected a model with latents"):
        ready("modes", {"caption": "fruit", "count": 32})


def test_characters_that_the_vocabulary_lacks_are_noticed(ready):
    for caption, lines in (("\N{RED APPLE}", 1), ("fruit", 0)):
        for name, more in (("generate", {}), ("modes", {"count": 1})):
            result = ready(name, {"caption": caption, "settings": {"num_steps": 1}} | more)
            assert [caption in line and "<unk>" in line for line in result["notices"]] == [True] * lines


@pytest.mark.slow
def test_modes_are_grouped_and_their_pictures_are_those_of_their_indices(client, model):
    body = {"caption": "bird", "count": 6, "seed": 1, "settings": {"num_steps": 2}}
    kind, result = client.result("modes", body)
    assert kind == "done" and sum(group["count"] for group in result["groups"]) == 6 == len(result["baseline"])
    assert sorted(i for group in result["groups"] for i in group["indices"]) == list(range(6))
    last = result["groups"][-1]
    drawn = client.result(
        "generate", {"caption": "bird", "seed": 1, "indices": last["indices"], "settings": {"num_steps": 2}}
    )
    assert drawn[1]["images"][0]["latents"] == last["latents"]
    about = client.ask("GET", "/api/model")[1]
    assert "autoguidance" not in about["guidances"]  # it needs a second model
    assert about["weights"] == drawn[1]["images"][0]["recipe"]["model"]["weights"]
    expected = model(["bird"] * 6, seed=1, num_steps=2)
    assert expected.latents[last["indices"][0]].to_json() == last["latents"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "latents",
    [
        {"text": "x" * 3_999},
        {"text": "<script>alert(1)</script>"},
        {"text": "\u202eright to left \u05d0"},
        {"text": "🍎 🍐"},
        {"text": "<extra_id_0>"},
        {"text": "</s> <bbox> <pad>"},
        {"voken": [1] * 33},
        {"voken": [10**6] * 4},
        {"bbox": [{"phrase": "apple | <bbox>", "box": [1, 2, 3, 4]}]},
        {"bbox": []},
        {"blob": []},
    ],
)
def test_latents_that_nobody_expects_end_in_a_picture_or_one_line(client, drawn, latents):
    kind, result = client.result("edit", {"recipe": drawn[0]["recipe"], "latents": latents})
    if kind == "done":
        assert set(result) == {"image", "before", "difference", "messages"}
    else:
        assert kind in ("refused", "failed") and len(result["message"]) < 500 and "\n" not in result["message"]


@pytest.mark.slow
@pytest.mark.parametrize("caption", ["", " ", "<script>", "\u0000", "🍎", "x " * 400, "</s>", "\u202e\u05d0"])
def test_captions_that_nobody_expects_end_in_a_picture_or_one_line(client, caption):
    kind, result = client.result("generate", {"caption": caption, "settings": {"num_steps": 2}})
    assert kind == "done" or "\n" not in result["message"]


@pytest.mark.slow
def test_a_recipe_of_another_model_is_refused_by_name(client, drawn):
    recipe = copy.deepcopy(drawn[0]["recipe"])
    recipe["model"] |= {"name": "../../etc/other", "weights": "0" * 16}
    for name in ("draw", "edit"):
        kind, result = client.result(name, {"recipe": recipe})
        assert kind == "failed" and "etc/other" in result["message"] and "emoji-tiny" in result["message"]


@pytest.mark.slow
def test_a_model_that_is_not_there_is_told(start_studio, tmp_path):
    client = start_studio(Engine(tmp_path))()
    kind, result = client.result("generate", {"caption": "fruit"})
    assert kind == "failed" and "config.json" in result["message"]
    assert client.ask("GET", "/api/model")[1]["problem"] == result["message"]


def test_who_asks_before_the_server_runs_waits_for_it():
    with listen(0) as listening, socket.create_connection(listening.getsockname(), timeout=5):
        with pytest.raises(UserError, match="taken"):
            listen(listening.getsockname()[1])
        assert listening.getsockname()[0] == "127.0.0.1"


def test_groups_are_by_what_latents_speak_of():
    apple = {"text": "an apple", "bbox": [{"phrase": "apple", "box": [0, 0, 9, 9]}]}
    pear = {"text": "a pear", "bbox": [{"phrase": "pear", "box": [0, 0, 9, 9]}, *apple["bbox"]]}
    rows = [{"index": i, "latents": z} for i, z in enumerate((pear, apple, apple, {"voken": [1, 2]}, None))]
    groups = grouped(rows)
    assert [(g["label"], g["indices"]) for g in groups][0] == ("apple", [1, 2])
    assert {g["label"]: g["share"] for g in groups}["apple + pear"] == 0.2
    assert label_of({"text": "just words"}) == "just words" and label_of({"voken": [1, 2]}) == "1 2"
    assert json.dumps(groups)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_it_ends_in_peace_while_the_model_is_loaded(number, code):
    """The interpreter's end would abort the process ("terminate called ...") for a thread that is inside a library."""
    source = "import sys; from kaleido_jax import main; from kaleido_jax.runtime import signals; "
    source += "signals.PATIENCE_SEC = 60; sys.argv[1:] = ['studio', '--port=0']; main.run()"  # says so after a second
    command = [sys.executable, "-c", source]
    # A job in the background of a script ignores Ctrl-C, and so would its children.
    heed = functools.partial(signal.signal, number, signal.SIG_DFL)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, preexec_fn=heed, **pipes) as server:
        assert "http://127.0.0.1:" in server.stdout.readline()
        time.sleep(0.5)
        server.send_signal(number)
        _, told = server.communicate(timeout=300)
    told = [line for line in told.splitlines() if "compiling the model" not in line]  # a fast machine is that far
    assert (server.returncode, told) == (code, [])
