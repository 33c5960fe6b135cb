import asyncio
import base64
import dataclasses
import io
import pickle
import re
import socket
import threading
import time
from email.utils import formatdate

import numpy as np
import pytest
from PIL import Image

from tests.annotate.vlm import openai_server
from tests.annotate.vlm.openai_server import GOOD, example, reply, serving, settings

pytest.importorskip("openai", reason="openai is not installed: pip install 'kaleido_jax[annotate]'")

from kaleido_jax.annotate.annotator import Failure
from kaleido_jax.annotate.vlm import endpoint
from kaleido_jax.annotate.vlm.captioner import Captioner
from kaleido_jax.annotate.vlm.endpoint import Endpoint, _retry_after_sec
from kaleido_jax.errors import UserError
from kaleido_jax.latents.types import Latents

GERMAN = (
    "Ein kleiner brauner Hund liegt auf dem Schoß einer Person in blauen Jeans und schaut auf einen offenen Laptop, "
    "während weiches Tageslicht durch das Fenster links in das Wohnzimmer fällt und im Hintergrund ein Sofa steht."
)
CHINESE = "一只棕色的小狗躺在穿着蓝色牛仔裤的人的腿上,旁边是一台打开的笔记本电脑。"
DESCRIBED = Latents(text=GOOD)


@pytest.fixture(autouse=True)
def no_proxy_no_waiting(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(endpoint, "FIRST_BACKOFF_SEC", 0.01)


def captioner(server, **changes):
    return Captioner(Endpoint(settings(server, **changes), max_tokens=64), image_size=28)


def ask(server, names, **changes):
    annotator = captioner(server, **changes)
    examples = [example(name) for name in names]
    return annotator(examples, [Latents()] * len(examples)), annotator.model.usage


# name of the image -> what the server does at each of its requests, and the reason if it never gets right
MENDS = {
    "well": [GOOD],
    "hangs": ["hang", GOOD],
    "drips": ["drip", GOOD],
    "busy": [(429, {"Retry-After": "0"}), 429, GOOD],
    "crashes": [500, 503, GOOD],
    "halves": ["half_json", "torn", GOOD],
    "drops": ["drop", GOOD],
    "wraps": ["html", "nested", GOOD],
    "upstream": [{"error": {"message": "upstream"}}, {"choices": []}, GOOD],
    "german": [GERMAN, GOOD],
    "refuses": ["I'm sorry, but I can't help with identifying people in images.", GOOD],
    "huge": ["ten_megabytes", GOOD],
    "everything": ["half_json", CHINESE, 500, GOOD],
    "without_message": [{"choices": [{"index": 0, "message": None}]}, [{"error": {"code": 503}}], GOOD],
}
FAILS = {
    "always_hangs": (["hang"], r"no answer within 1 s \(3 tries\)"),
    "always_busy": ([429], r"status 429.*as asked.*\(5 tries\)"),
    "always_crashes": ([500], r"status 500.*\(5 tries\)"),
    "always_halves": (["half_json"], r"not JSON.*\(5 tries\)"),
    "always_chinese": ([CHINESE], r"letters are not Latin \(5 tries\)"),
    "always_german": ([GERMAN], r"not English.*\(5 tries\)"),
    "always_refuses": (["I cannot assist with that request."], r"refusal: .*assist.*\(5 tries\)"),
    "always_huge": (["ten_megabytes"], r"more than 1000000 bytes \(5 tries\)"),
    "always_empty": ([""], r"empty answer \(5 tries\)"),
    "filtered": ([reply(None, "content_filter")], r"filter.*\(5 tries\)"),
    "declined": ([reply(None, refusal="I can't do that")], r"I can't do that \(5 tries\)"),
    "cut_off": ([reply(GOOD, "length")], r"cut off.*\(5 tries\)"),
    "too_large": ([400], r"status 400: as asked \(1 try\)"),
    "gemini_filtered": ([reply(None, "content_filter: SAFETY")], r"filter: content_filter: safety \(5 tries\)"),
    "gemini_cut_off": ([reply(GOOD, "MAX_TOKENS")], r"cut off at the token limit \(5 tries\)"),
    "null": ([reply(None)], r"empty answer \(5 tries\)"),
    "reasons": ([reply(None, reasoning_content=GOOD)], r"empty answer, all of it reasoning \(5 tries\)"),
    "still_reasons": ([reply("", "length", reasoning=GOOD)], r"all of it reasoning, cut off at the token limit \(5"),
}


HANG = ("hangs", "drips", "always_hangs")


# A busy machine may be slow with a good answer too: only what shall run into the time-out has a short one, and what
# shall be mended behind it has many tries.
@pytest.mark.parametrize(
    ("which", "changes"),
    [
        (lambda name: name in HANG and name in MENDS, {"timeout_s": 1.0, "retries": 20}),
        (lambda name: name in HANG and name in FAILS, {"timeout_s": 1.0, "retries": 2}),
        (lambda name: name not in HANG, {"timeout_s": 60.0, "retries": 4}),
    ],
    ids=["hanging at first", "hanging", "answering"],
)
def test_a_flaky_server_loses_no_image(which, changes):
    scripts = MENDS | {name: script for name, (script, _) in FAILS.items()}
    names = sorted(filter(which, scripts), key=lambda name: name[::-1])  # the two kinds mixed
    with serving(scripts) as server:
        results, usage = ask(server, names, **changes)
    assert len(results) == len(names)
    for name, result in zip(names, results, strict=True):
        if name in MENDS:
            assert result == DESCRIBED, name
            assert len(server.requests[name]) >= len(MENDS[name])
        else:
            assert isinstance(result, Failure) and result.segment == "text", name
            assert "\n" not in result.reason
            assert re.search(FAILS[name][1], result.reason), result.reason
    mended = sum(name in MENDS for name in names)
    assert (usage.answers, usage.unanswered) == (mended, len(names) - mended)
    assert usage.requests >= sum(map(len, server.requests.values()))  # one may be too late before it is sent
    assert usage.retries == usage.requests - len(names)


def test_concurrency_is_used_and_bounded():
    three = threading.Barrier(3)  # whose requests come in together, however busy the machine is
    with serving(default="slow") as server:
        server.slow = lambda handler: (three.wait(60), time.sleep(0.05), server.send(handler, reply(GOOD)))
        results, _ = ask(server, [f"n{i}" for i in range(12)], concurrency=3)
    assert results == [DESCRIBED] * 12
    assert server.most_under_way == 3


def test_what_is_asked_about_an_image_depends_on_nothing_but_the_image():
    script = {"a": [GERMAN, "drop", GERMAN, GOOD], "b": [500, GERMAN, GOOD]}
    with serving(script) as together, serving(script) as alone:
        ask(together, ["b", "a", "c"])
        ask(alone, ["a"])
    asked = together.requests["a"]
    assert asked == alone.requests["a"]
    # A server's failure repeats the request, an unusable answer changes it.
    assert [request["temperature"] for request in asked] == [0.0, 0.7, 0.7, 0.7]
    assert asked[1]["seed"] == asked[2]["seed"] != asked[3]["seed"]


def test_retry_after_holds_back_all_requests():
    with serving({"a": [(429, {"Retry-After": "0.3"}), GOOD]}) as server:
        results, _ = ask(server, ["a", "b"], concurrency=1)
    assert results == [DESCRIBED] * 2
    first, *later = server.times
    assert len(later) == 2 and min(later) - first >= 0.3


def test_retry_after_may_be_a_date():
    assert 900 < _retry_after_sec({"retry-after": formatdate(time.time() + 1000, usegmt=True)}) <= 1000
    assert _retry_after_sec({"retry-after": formatdate(time.time() - 10, usegmt=True)}) == 0
    assert _retry_after_sec({"retry-after": "soon"}) is _retry_after_sec({}) is _retry_after_sec({"retry-after": "nan"})
    assert _retry_after_sec({}) is None and _retry_after_sec({"retry-after": "-1"}) == 0


def throttled(server, number, window_sec):
    """A behavior that answers so many requests in each window of time, and tells the others when the next begins."""
    taken, lock = {}, threading.Lock()

    def behave(body):
        with lock:
            window = int(time.monotonic() / window_sec)
            taken[window] = taken.get(window, 0) + 1
            if taken[window] <= number:
                return GOOD
            return 429, {"Retry-After": str((window + 1) * window_sec - time.monotonic() + 0.01)}

    return behave


def test_a_server_that_throttles_loses_no_image_and_is_asked_less_at_a_time(caplog):
    caplog.set_level("INFO", logger="kaleido_jax")
    names = [f"n{number}" for number in range(32)]
    with serving() as server:
        server.default = throttled(server, 4, 0.2)
        results, usage = ask(server, names, retries=1, concurrency=16)
    assert results == [DESCRIBED] * 32
    assert usage.requests < 100  # sixteen at a time would be refused hundreds of times
    assert "is busy (status 429: as asked)" in caplog.text


def test_a_server_that_stays_busy_is_given_up_after_a_while(monkeypatch, caplog):
    monkeypatch.setattr(endpoint, "PATIENCE_SEC", 0.3)
    with serving({"b": [(503, {"Retry-After": "0"})]}) as server:
        [good, failure], usage = ask(server, ["a", "b"])
    assert good == DESCRIBED and failure.again and usage.requests > 3
    assert re.fullmatch(r"status 503: as asked \([0-9]+ tries\)", failure.reason)
    assert "which is busy: given up" in caplog.text


def test_only_what_the_server_alone_is_to_blame_for_may_be_asked_again():
    with serving({"a": [500], "b": [400], "c": [GERMAN], "d": [GERMAN, 500]}) as server:
        results, _ = ask(server, ["a", "b", "c", "d", "e"], retries=1)
    assert [getattr(result, "again", None) for result in results] == [True, False, False, True, None]


def test_requests_per_minute_are_kept(monkeypatch):
    clock, starts = [100.0], []

    async def sleep(seconds, yielding=asyncio.sleep):
        clock[0] += max(seconds, 0)
        await yielding(0)

    monkeypatch.setattr(endpoint.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(endpoint.asyncio, "sleep", sleep)
    with serving() as server:
        model = captioner(server, requests_per_minute=60 / 0.5).model

    async def start():
        await model._turn()
        starts.append(clock[0])

    async def start_four():
        for _ in range(4):
            await start()

    asyncio.run(start_four())
    assert starts == [100.0, 100.5, 101.0, 101.5]


def test_backoff_grows_and_its_jitter_is_the_images_own():
    with serving() as server:
        one, other = captioner(server).model, captioner(server).model
    waits = [one._backoff_sec("test/a", k) for k in range(4)]
    assert waits == [other._backoff_sec("test/a", k) for k in range(4)]
    assert waits[0] != one._backoff_sec("test/b", 0)
    assert all(0.5 <= wait / (0.01 * 2**k) < 1.5 for k, wait in enumerate(waits))
    assert one._backoff_sec("test/a", 100) == 300


def test_tokens_and_cost_are_counted_with_the_retries():
    with serving({"b": [GERMAN, GOOD]}) as server:
        annotator = captioner(server, price_in=2.0, price_out=10.0)
        for name in ("a", "b"):
            annotator([example(name)], [Latents()])
    usage = annotator.model.usage
    assert (usage.requests, usage.prompt_tokens, usage.completion_tokens) == (3, 900, 300)
    assert annotator.model.cost() == pytest.approx((900 * 2 + 300 * 10) / 1e6)
    assert "2 answers" in annotator.model.report() and "0.0048" in annotator.model.report()


@pytest.mark.parametrize("format", ["png", "jpeg"])
def test_the_picture_travels_as_a_data_url(format):
    with serving() as server:
        ask(server, ["a"], image_format=format)
    [request] = server.requests["a"]
    head, data = request["messages"][0]["content"][0]["image_url"]["url"].split(",")
    assert head == f"data:image/{format};base64"
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert picture.format.lower() == format and picture.size == (28, 28)
    off = np.abs(np.asarray(picture, int) - (200, 120, 40)).max()
    assert off == 0 if format == "png" else off <= 3


def test_request_fields_follow_the_config():
    with serving() as server:
        ask(server, ["a"])
        ask(server, ["b"], sampling=False, limit_field="max_completion_tokens")
    plain, hosted = server.requests["a"][0], server.requests["b"][0]
    assert set(plain) == {"model", "messages", "max_tokens", "temperature", "seed"}
    assert set(hosted) == {"model", "messages", "max_completion_tokens"}
    assert hosted["max_completion_tokens"] == 64 and hosted["model"] == "tiny"


def called(arguments):
    return {"id": "1", "type": "function", "function": {"name": "describe", "arguments": arguments}}


CONTENTS = {
    "parts": reply([{"type": "text", "text": GOOD[:50]}, {"type": "text", "text": GOOD[50:]}]),
    "thinking": reply(
        [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}, {"type": "text", "text": GOOD}]
    ),
    "reasoning": reply(
        [{"type": "reasoning", "text": "Hm."}, {"type": "output_text", "text": GOOD}, {"type": "image"}]
    ),
    "strings": reply([GOOD[:50], GOOD[50:], None]),
    "value": reply([{"type": "text", "text": {"value": GOOD, "annotations": []}}]),
    "object": reply({"description": GOOD}),
    "beside_reasoning": reply(GOOD, reasoning_content="Hm.", reasoning="Hm.", refusal=""),
    "tool": reply(None, "tool_calls", tool_calls=[called(f'{{"description": "{GOOD}"}}')]),
    "tool_object": reply("", tool_calls=[None, called({"description": GOOD})]),
    "function": reply(None, "function_call", function_call={"name": "f", "arguments": f'{{"text": "{GOOD}"}}'}),
    "no_usage": reply(GOOD) | {"usage": None},
    "no_finish": reply(GOOD, None),
    "odd_usage": reply(GOOD) | {"usage": {"prompt_tokens": "300", "completion_tokens": None}},
}


def test_content_comes_in_many_shapes():
    with serving({name: [content] for name, content in CONTENTS.items()}) as server:
        results, usage = ask(server, list(CONTENTS))
    assert dict(zip(CONTENTS, results, strict=True)) == dict.fromkeys(CONTENTS, DESCRIBED)
    assert usage.requests == len(CONTENTS)


def test_a_caption_of_half_a_character_can_be_sent():
    with serving() as server:
        cut = dataclasses.replace(example("a"), id="test/\ud83d", caption="image a \ud83d")
        assert captioner(server)([cut], [Latents()]) == [DESCRIBED]


def test_a_bad_image_is_a_failure_and_is_not_sent():
    bad = openai_server.Example(id="test/bad", image=np.zeros((4, 5, 3), np.uint8), caption="image bad")
    with serving() as server:
        results = captioner(server)([bad, example("a")], [Latents()] * 2)
    assert results[0] == Failure(
        segment="text", reason="image of shape (4, 5, 3) and type uint8, wanted a square RGB crop, uint8"
    )
    assert results[1] == DESCRIBED and list(server.requests) == ["a"]


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_a_server_that_refuses_key_or_model_stops_the_job(status, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sesame")
    with serving(default=status) as server, pytest.raises(UserError) as error:
        ask(server, ["a", "b"], api_key_variable="MY_KEY")
    assert f"answers {status}" in str(error.value) and "\n" not in str(error.value)
    assert "sesame" not in str(error.value)
    assert server.headers[0]["Authorization"] == "Bearer sesame"


def test_an_unset_key_is_reported_before_anything_is_asked(monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with serving() as server, pytest.raises(UserError, match="MY_KEY is not set"):
        captioner(server, api_key_variable="MY_KEY")


def test_a_server_that_is_not_there_stops_the_job():
    with socket.socket() as taken:  # bound but not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        server = type("Nobody", (), {"base_url": f"http://127.0.0.1:{taken.getsockname()[1]}/v1"})
        with pytest.raises(UserError, match=r"no answer from .* to any of 1 images \(no connection: .*4 tries"):
            ask(server, ["a"])


def test_a_server_that_fails_for_all_of_many_images_stops_the_job():
    with serving(default=500) as server:
        with pytest.raises(UserError, match="to any of 4 images"):
            ask(server, ["a", "b", "c", "d"])
        # One image may be what makes it fail.
        [failure], _ = ask(server, ["a"])
    assert isinstance(failure, Failure)


def test_an_endpoint_survives_pickling_for_other_processes():
    with serving() as server:
        copy = pickle.loads(pickle.dumps(captioner(server)))
        assert copy([example("a")], [Latents()]) == [DESCRIBED]
