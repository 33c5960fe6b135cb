"""Client of an OpenAI-compatible server with a vision-language model: many requests at once, none of them lost."""

import asyncio
import base64
import email.utils
import io
import json
import logging
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from kaleido_jax.annotate.vlm.answers import Answer, UnusableAnswer
from kaleido_jax.annotate.vlm.model import (
    RETRY_TEMPERATURE,
    AnswerReader,
    Pace,
    Question,
    Unanswered,
    one_line,
    seed_of,
)
from kaleido_jax.config.schema import AnnotateEndpoint
from kaleido_jax.errors import user_error
from kaleido_jax.latents.types import Latents

log = logging.getLogger(__name__)

FIRST_BACKOFF_SEC = 1.0  # doubled with every failure of a question
LONGEST_WAIT_SEC = 300.0  # between two attempts, even if a server's Retry-After asks for more
# A busy server that says when to come back uses up no attempt, as long as it has answered somebody in this time: so
# the wait ends, at the latest so long after the last answer that it gives.
PATIENCE_SEC = 900.0
JPEG_QUALITY = 95
MANY = 4  # a few questions may themselves make a server fail; if this many fail together, it is the server's fault
# No answer to any image: no key, no money, not allowed, no such model.
_FATAL = {401: "check the key", 402: "check the account", 403: "check the key's rights", 404: "check URL and model"}
_TRANSIENT = (408, 409, 425, 429)  # and 5xx
_BUSY = (429, 503, 529)  # with Retry-After
# Finish reasons in lower case, of OpenAI's and Gemini's endpoints; the latter adds what it filtered.
_CUT_OFF = ("length", "max_tokens")
_FILTERED = ("content_filter", "safety", "recitation", "blocklist", "prohibited_content", "refusal")


@dataclass
class Usage:
    """Requests to a server so far, retries included."""

    requests: int = 0
    retries: int = 0
    answers: int = 0
    unanswered: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Trouble(Exception):
    """An attempt without an answer; `again` says whether another may succeed, `busy` that the server said when."""

    def __init__(self, reason: str, *, again: bool = True, reached: bool = True, busy: bool = False) -> None:
        super().__init__(one_line(reason))
        self.again, self.reached, self.busy = again, reached, busy


@dataclass(frozen=True, kw_only=True)
class _Lost(Unanswered):
    by_server: bool  # no attempt gave an answer that could be read
    reached: bool  # some attempt got a response or a time-out


class _Slots:
    """Admits `allowed` requests at a time; used as a context manager around each, in one event loop.

    A busy server halves the number, and each answer raises it by one: the questions that waited for it do not come all
    at once, and a server that has time again has all of them after a few answers.
    """

    def __init__(self, most: int, allowed: int) -> None:
        self._most, self.allowed, self._taken, self._changed = most, allowed, 0, asyncio.Condition()

    async def __aenter__(self) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._taken < self.allowed)
            self._taken += 1

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None:
            self.allowed = min(self._most, self.allowed + 1)
        elif isinstance(error, _Trouble) and error.busy:
            self.allowed = max(1, self.allowed // 2)
        async with self._changed:
            self._taken -= 1
            self._changed.notify_all()


class Endpoint:
    """Asks a server, `concurrency` requests at a time. Attribute `usage` counts them, `cost()` gives their price.

    A failed attempt is repeated after an exponential backoff with jitter (a function of the example's id); a server's
    Retry-After, and requests_per_minute, delay all requests of this object. While a server is busy and says so by
    Retry-After, fewer requests are sent at a time and no attempt is used up.
    """

    own_prompts: Mapping[str, str] = {}  # servers apply the model's chat template

    def __init__(self, settings: AnnotateEndpoint, *, max_tokens: int, model: str | None = None) -> None:
        """The server of `settings`; `model` replaces its model; answers have at most `max_tokens`.

        Raises:
          UserError: no URL or model, an unset key variable, or the openai package is missing.
        """
        self._settings, self._max_tokens = settings, max_tokens
        self._model = model or settings.model
        if not (settings.base_url and self._model):
            group = "config.annotate.endpoint"
            found = f"{group}.base_url = {settings.base_url!r} and model = {self._model!r}"
            raise user_error(found, "a server's URL and the model's name there", f"set {group}.base_url and .model")
        _import_openai()
        self._key()
        self._not_before = 0.0  # monotonic seconds; no request starts earlier
        self._allowed = settings.concurrency  # requests at a time
        self._last_answer = time.monotonic()
        self._pace, self._busy_pace, self._given_up_pace = Pace(), Pace(), Pace()
        self.usage = Usage()
        # A server does not say which weights it has; a fixed revision belongs in the model's name.
        self.metadata = {
            "model": self._model,
            "version": "as served",
            "server": "openai",
            "format": settings.image_format,
        }

    def cost(self) -> float:
        """What the tokens so far cost, in the currency of the prices."""
        prices = self._settings.price_in, self._settings.price_out
        return (self.usage.prompt_tokens * prices[0] + self.usage.completion_tokens * prices[1]) / 1e6

    def ask(self, questions: Sequence[Question], read: AnswerReader) -> list[Latents | Unanswered]:
        """See VisionModel. Not to be called inside a running event loop.

        Raises:
          UserError: the server refuses the key or the model, cannot be reached at all, or has failed for each of
            four questions or more.
        """
        if not questions:
            return []
        results = asyncio.run(self._ask_all(questions, read))
        lost = [r for r in results if isinstance(r, _Lost)]
        self.usage.answers += len(results) - len(lost)
        self.usage.unanswered += len(lost)
        if self._pace.due():
            log.info("%s", self.report())
        is_ill = all(r.by_server for r in lost) and (len(lost) >= MANY or not any(r.reached for r in lost))
        if len(lost) == len(results) and is_ill:
            found = f"no answer from {self._settings.base_url} to any of {len(lost)} images ({lost[-1].reason})"
            raise user_error(found, "a server that answers", "start it, or correct config.annotate.endpoint")
        return results

    def report(self) -> str:
        """One line: answers, retries, tokens and cost so far."""
        u = self.usage
        return (
            f"{self._model}: {u.answers} answers, {u.unanswered} images without, {u.requests} requests "
            f"({u.retries} retries), {u.prompt_tokens} tokens in, {u.completion_tokens} out, cost {self.cost():.4g}"
        )

    # ------------------------------------------------------------------------------------------- one batch
    async def _ask_all(self, questions: Sequence[Question], read: AnswerReader) -> list[Latents | Unanswered]:
        openai = _import_openai()
        slots = _Slots(self._settings.concurrency, self._allowed)
        self._last_answer = time.monotonic()
        # A client belongs to its event loop, so each batch has its own. Retries are made here, not by the client.
        async with openai.AsyncOpenAI(
            base_url=self._settings.base_url, api_key=self._key(), max_retries=0, timeout=self._settings.timeout_s
        ) as client:
            results = await asyncio.gather(*(self._ask_one(client, slots, question, read) for question in questions))
        self._allowed = slots.allowed
        return results

    async def _ask_one(
        self, client: Any, slots: _Slots, question: Question, read: AnswerReader
    ) -> Latents | Unanswered:
        by_server, reached, unusable, reason, again = True, False, 0, "", False
        tries = requests = 0
        while tries <= self._settings.retries:
            self.usage.retries += requests > 0
            requests += 1
            try:
                async with slots:
                    answer = await self._post(client, question, unusable)
                return read(answer)
            except UnusableAnswer as error:
                by_server, reached, reason, again = False, True, str(error), False
                unusable += 1
            except _Trouble as error:
                reached, reason, again = reached or error.reached, str(error), error.again
                if error.busy and self._is_patient(reason):
                    continue
                if not error.again or error.busy:
                    break
                if tries < self._settings.retries:
                    await asyncio.sleep(self._backoff_sec(question.id, tries))
            tries += 1
        said = f"{requests} tries" if requests > 1 else "1 try"
        return _Lost(reason=one_line(f"{reason} ({said})"), by_server=by_server, reached=reached, again=again)

    def _is_patient(self, reason: str) -> bool:
        """Whether to go on waiting for a server that is busy."""
        waited = time.monotonic() - self._last_answer
        if waited > PATIENCE_SEC:
            if self._given_up_pace.due():
                log.warning("no answer for %.0f s from %s, which is busy: given up", waited, self._settings.base_url)
            return False
        if self._busy_pace.due():
            wait = max(0.0, self._not_before - time.monotonic())
            log.info("%s is busy (%s): waiting %.0f s, then fewer requests at a time", self._model, reason, wait)
        return True

    def _backoff_sec(self, id: str, attempt: int) -> float:
        jitter = 0.5 + seed_of(id, attempt) / 2**31  # 0.5..1.5
        return min(FIRST_BACKOFF_SEC * 2**attempt * jitter, LONGEST_WAIT_SEC)

    async def _turn(self) -> None:
        while (wait := self._not_before - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        per_minute = self._settings.requests_per_minute
        self._not_before = time.monotonic() + (60 / per_minute if per_minute else 0)

    # ------------------------------------------------------------------------------------------- one request
    async def _post(self, client: Any, question: Question, unusable: int) -> Answer:
        openai = _import_openai()
        await self._turn()
        self.usage.requests += 1
        request = self._request(question, unusable)
        try:
            # The client's own time-out is for each read; a server that sends byte by byte would never reach it.
            async with asyncio.timeout(self._settings.timeout_s):
                async with client.chat.completions.with_streaming_response.create(**request) as response:
                    body = await self._body(response)
        except (TimeoutError, openai.APITimeoutError) as error:
            raise _Trouble(f"no answer within {self._settings.timeout_s:g} s") from error
        except openai.APIConnectionError as error:
            raise _Trouble(f"no connection: {error.__cause__ or error}", reached=False) from error
        except openai.APIStatusError as error:
            raise self._refused(error) from error
        except _transport_errors() as error:  # in the middle of the body, where openai does not wrap it
            raise _Trouble(f"the connection broke off: {error}") from error
        self._last_answer = time.monotonic()
        return self._answer(body)

    def _request(self, question: Question, unusable: int) -> dict[str, Any]:
        picture = io.BytesIO()
        if self._settings.image_format == "jpeg":
            question.picture().save(picture, "jpeg", quality=JPEG_QUALITY, subsampling=0)
        else:
            question.picture().save(picture, "png", compress_level=1)
        encoded = base64.b64encode(picture.getvalue()).decode()
        url = f"data:image/{self._settings.image_format};base64,{encoded}"
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question.prompt}]
        request = {
            "model": self._model,
            "messages": [{"role": "user", "content": content}],
            self._settings.limit_field: self._max_tokens,
        }
        if self._settings.sampling:
            # Counts unusable answers only: the server's failures must not change the request.
            request |= {"temperature": RETRY_TEMPERATURE if unusable else 0.0, "seed": seed_of(question.id, unusable)}
        return request

    async def _body(self, response: Any) -> bytes:
        body = bytearray()
        async for chunk in response.iter_bytes():
            body += chunk
            if len(body) > self._settings.max_answer_bytes:  # the rest is never read
                raise UnusableAnswer(f"answer of more than {self._settings.max_answer_bytes} bytes")
        return bytes(body)

    def _answer(self, body: bytes) -> Answer:
        try:
            reply = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise _Trouble(f"{len(body)} bytes that are not JSON: {body[:60]!r}") from error
        try:
            choice = reply["choices"][0]
            message = choice["message"]
            finish, refusal = str(choice.get("finish_reason")).lower(), message.get("refusal")
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            # Some routers report an upstream failure this way, with status 200.
            raise _Trouble(f"JSON without choices: {body[:120].decode(errors='replace')}") from error
        usage = reply.get("usage")
        for name in ("prompt_tokens", "completion_tokens"):
            tokens = usage.get(name) if isinstance(usage, dict) else None
            if type(tokens) is int:
                setattr(self.usage, name, getattr(self.usage, name) + tokens)
        if refusal or finish.startswith(_FILTERED):
            raise UnusableAnswer(one_line(f"refused by the server's filter: {refusal or finish}"))
        text, cut_off = _text_of(message), finish in _CUT_OFF
        if not text.strip() and (message.get("reasoning_content") or message.get("reasoning")):
            # Not an answer: the boxes in it are drafts.
            raise UnusableAnswer("empty answer, all of it reasoning" + ", cut off at the token limit" * cut_off)
        return Answer(text=text, cut_off=cut_off)

    def _refused(self, error: Any) -> Exception:
        status, message = error.status_code, error.body or error.message
        if isinstance(message, dict):  # {"message": ...} is OpenAI's, {"detail": ...} FastAPI's
            message = message.get("message") or message.get("detail") or message.get("error") or message
        message = one_line(message)
        if status in _FATAL:
            found = f"{self._settings.base_url} answers {status} for model {self._model!r} ({message})"
            return user_error(found, "a server that accepts requests", _FATAL[status])
        if status not in _TRANSIENT and status < 500:  # this request, so this image, is refused for good
            return _Trouble(f"status {status}: {message}", again=False)
        wait_sec = _retry_after_sec(error.response.headers)
        if wait_sec is None:
            return _Trouble(f"status {status}: {message}")
        # Not at once even if the server says so: no attempt is used up, so nothing else would slow this down.
        wait_sec = min(max(wait_sec, FIRST_BACKOFF_SEC), LONGEST_WAIT_SEC)
        self._not_before = max(self._not_before, time.monotonic() + wait_sec)
        return _Trouble(f"status {status}: {message}", busy=status in _BUSY)

    def _key(self) -> str:
        name = self._settings.api_key_variable
        if name is None:
            return "none"  # openai requires one; servers without keys ignore it
        if not os.environ.get(name):
            raise user_error(f"environment variable {name} is not set", "the server's key in it", "export it")
        return os.environ[name]


def _text_of(message: dict[str, Any]) -> str:
    """The answer in a message, whose content may be a string, parts, or the arguments of a tool that was called."""
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(map(_text_of_part, content))
    elif isinstance(content, dict):
        content = json.dumps(content)
    if isinstance(content, str) and content.strip():
        return content
    calls = message.get("tool_calls") or []
    called = [call.get("function") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    for function in (*called, message.get("function_call")):
        arguments = function.get("arguments") if isinstance(function, dict) else None
        if arguments:
            return arguments if isinstance(arguments, str) else json.dumps(arguments)
    return ""


def _text_of_part(part: Any) -> str:
    if isinstance(part, dict):
        text = part.get("text") if part.get("type", "text") in ("text", "output_text") else None
        part = text.get("value") if isinstance(text, dict) else text
    return part if isinstance(part, str) else ""


def _retry_after_sec(headers: Mapping[str, str]) -> float | None:
    """The seconds of a Retry-After header, which holds a number or a date, 0 or more; None without a readable one."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
        return max(0.0, seconds) if math.isfinite(seconds) else None
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _import_openai() -> ModuleType:
    try:
        import openai
    except ImportError as error:
        raise user_error(
            "the package openai is missing", "it installed", "pip install 'kaleido_jax[annotate]'"
        ) from error
    return openai


def _transport_errors() -> tuple[type[Exception], ...]:
    """What openai's HTTP library raises: httpx2 with openai 3, httpx before; the other may be there as well."""
    loaded = [sys.modules[name] for name in ("httpx", "httpx2") if name in sys.modules]
    return tuple(library.HTTPError for library in loaded)
