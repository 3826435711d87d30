"""A reasoner behind an OpenAI-compatible server: vLLM, SGLang, ``transformers serve``, OpenAI.

The ``openai`` package speaks the protocol. Retries are made here: the package knows neither rate
limits nor broken bodies, and gives up before a server that restarts is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import os
import random
import re
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

from ..files import parse_json
from ..terminal import printable
from .reasoner import (
    ItemError,
    MissingReasonerError,
    Prompt,
    ReasonerError,
    Rollout,
    prepare_image,
    user_text,
)
from .scrubbing import scrubber

MAX_ANSWER_BYTES = 8 * 2**20  # as they come and unpacked; a rollout of 100,000 tokens has one
MAX_TOKENS = 10**7  # of an answer; a server that says more has not counted
MAX_QUOTED = 150  # characters of a server's message that a reason quotes
# Characters of a secret from where on it is looked for in messages, and in rollouts, which a
# placeholder for a key ("EMPTY") must not change.
SECRET_IN_MESSAGES, SECRET_IN_ROLLOUTS = 4, 8
FIRST_DELAY, LONGEST_DELAY = 0.5, 60.0  # seconds between attempts, doubled each time
LONGEST_PAUSE = 600.0  # seconds that a server may ask for
GIVE_UP = 20  # rollouts lost in a row, after which the server counts as gone
INSTALL = "pip install 'openai[aiohttp]'"
RESERVED = ("messages", "n", "stream")  # fields of a request that only the program sets
# One escape of a JSON text, named where it is half of a surrogate pair without the other half.
_ESCAPE = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    r"|(?P<half>u[dD][89a-fA-F][0-9a-fA-F]{2})|.)"
)


class Pace:
    """At most so many units a minute; what is spent too much is waited for afterwards.

    That fits tokens, whose number is known only when the response is there.
    """

    def __init__(self, per_minute: float | None) -> None:
        self.seconds_per_unit = 60 / per_minute if per_minute else 0.0
        self._free_at = 0.0

    async def wait(self) -> None:
        """Until nothing is owed."""
        while (owed := self._free_at - time.monotonic()) > 0:
            await asyncio.sleep(owed)

    def pause(self, seconds: float) -> None:
        """Nothing for so long."""
        self._free_at = max(self._free_at, time.monotonic() + seconds)

    def spend(self, units: float) -> None:
        """To be waited for by whoever comes next."""
        self._free_at = max(self._free_at, time.monotonic()) + units * self.seconds_per_unit


class Server:
    """Samples from an OpenAI-compatible server; a :class:`~reweighting.rollouts.reasoner.Reasoner`.

    The key comes from the environment (``OPENAI_API_KEY``) and goes nowhere but to the server:
    redirects are not followed, and whatever the server says is free of it. No answer is trusted:
    at most :data:`MAX_ANSWER_BYTES` of it come into memory. What can be read of a completion is
    kept; ``notes`` counts what could not.

    Args:
        model: its name on the server.
        base_url: ``http://host:port/v1``; None: ``OPENAI_BASE_URL``, else OpenAI itself.
        continuation: how a prefix is put: ``instruction``, quoted in the user's turn, which every
            server understands; or ``prefill``, as the opening of the assistant's turn, which vLLM
            and SGLang continue.
        request_options: further fields of every request; None as a value leaves a field out.
        timeout: seconds for one attempt.
        max_retries: attempts after the first, for each rollout.

    Raises:
        MissingReasonerError: the package is missing, or key, address or options are unusable.
    """

    rollouts_per_call = 1

    def __init__(
        self,
        model: str,
        instruction: str,
        base_url: str | None = None,
        temperature: float = 1.0,
        max_tokens: int = 1024,
        max_image_size: int = 512,
        continuation: str = "instruction",
        request_options: dict[str, Any] | None = None,
        concurrency: int = 16,
        timeout: float = 300.0,
        max_retries: int = 8,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
    ) -> None:
        if reserved := [name for name in RESERVED if name in (request_options or {})]:
            raise MissingReasonerError(
                f"request options: {reserved[0]!r} is set by the program and cannot be one"
            )
        self._connect(base_url, timeout)
        self.instruction = instruction
        self.max_image_size = max_image_size
        self.continuation = continuation
        self.timeout = timeout
        self.max_retries = max_retries
        self.retries = 0
        self.notes: Counter[str] = Counter()  # what answers lacked
        self._request = {
            "model": model,
            "temperature": temperature,
            "max_completion_tokens": max_tokens,
            "seed": 0,  # its place; every rollout has its own
            **(request_options or {}),
        }
        self.settings = {
            **self._request,
            "instruction": instruction,
            "max_image_size": max_image_size,
            "continuation": continuation,
        }
        self._slots = asyncio.Semaphore(concurrency)
        self._requests = Pace(requests_per_minute)
        self._tokens = Pace(tokens_per_minute)
        self._answered = False
        self._lost_in_a_row = 0

    def _connect(self, base_url: str | None, timeout: float) -> None:
        """Make the client, and what takes its secrets out of texts."""
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not (key.isascii() and key.isprintable()):  # it could not be sent
            raise MissingReasonerError("OPENAI_API_KEY holds characters that no key has")
        address = base_url or os.environ.get("OPENAI_BASE_URL") or ""
        if "@" in address.partition("?")[0]:  # wherever a mistyped address has it; not shown
            raise MissingReasonerError(
                "a server's address holds no @, no name and no password; "
                "the key is in OPENAI_API_KEY"
            )
        secrets = [key, *_passwords_of_proxies()]
        self._scrub, self._scrub_rollout = (
            scrubber(secret for secret in secrets if len(secret) >= least)
            for least in (SECRET_IN_MESSAGES, SECRET_IN_ROLLOUTS)
        )
        if address and not re.match("https?://[^/]", address):
            raise MissingReasonerError(f"{self._quoted(address)}: not http://HOST or https://HOST")
        try:
            import openai

            client_class = _client_class(openai)
        except (ImportError, AttributeError) as error:
            raise MissingReasonerError(f"a server needs the openai package: {INSTALL}") from error
        try:
            self._client = openai.AsyncOpenAI(
                base_url=base_url,
                api_key=key or "none",  # servers of one's own want no key, but the package does
                timeout=timeout,
                max_retries=0,
                http_client=client_class(timeout=timeout, follow_redirects=False),
                default_headers={"Accept-Encoding": "gzip"},
            )
        except RuntimeError as error:  # without aiohttp
            raise MissingReasonerError(f"a server needs the openai package: {INSTALL}") from error
        except Exception as error:  # the packages below have several for an address
            place = self._quoted(address) if address else "the environment's proxies"
            reason = self._quoted(error)
            raise MissingReasonerError(f"{place}: cannot be used: {reason}") from error
        self._openai = openai

    async def sample(self, prompt: Prompt, seeds: Sequence[int]) -> list[Rollout]:
        return [await self._one(prompt, seed) for seed in seeds]

    async def close(self) -> None:
        await self._client.close()

    def _body(self, prompt: Prompt, seed: int) -> dict[str, Any]:
        """The request as JSON."""
        prefill = prompt.prefix if self.continuation == "prefill" else ""
        quoted = "" if prefill else prompt.prefix
        text = user_text(prompt.question, self.instruction, quoted)
        image = prepare_image(prompt.image, self.max_image_size)
        content = [
            {"type": "image_url", "image_url": {"url": image.data_url}},
            {"type": "text", "text": text},
        ]
        body = {**self._request, "messages": [{"role": "user", "content": content}]}
        if prefill:
            body["messages"].append({"role": "assistant", "content": prefill + "\n"})
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        if body["seed"] is not None:
            body["seed"] = seed
        return {name: value for name, value in body.items() if value is not None}

    async def _one(self, prompt: Prompt, seed: int) -> Rollout:
        """One rollout, tried until it is there or there is no hope."""
        async with self._slots:  # kept while waiting: a server in trouble is asked less
            attempt = 0
            while True:
                await self._requests.wait()
                await self._tokens.wait()
                self._requests.spend(1)
                try:
                    rollout = await self._attempt(self._body(prompt, seed))
                except _Transient as trouble:
                    if attempt == self.max_retries:
                        times = f" ({attempt + 1} attempts)" if attempt else ""
                        raise self._lost(f"{trouble}{times}", True) from trouble
                    if trouble.pause > 0:  # the server wants to be left alone, by all requests
                        self._requests.pause(min(trouble.pause, LONGEST_PAUSE))
                    delay = min(LONGEST_DELAY, FIRST_DELAY * 2**attempt)
                    await asyncio.sleep(delay * random.uniform(0.5, 1.0))
                    attempt += 1
                    self.retries += 1
                else:
                    self._answered, self._lost_in_a_row = True, 0
                    self._tokens.spend(rollout.tokens_in + rollout.tokens_out)
                    return rollout

    async def _attempt(self, body: dict[str, Any]) -> Rollout:
        openai = self._openai
        try:
            # The plain endpoint: a server's answer is checked below rather than trusted.
            request = self._client.post("/chat/completions", body=body, cast_to=bytes)
            # The client's own limit is on every read, which a trickle of bytes never meets.
            answer = await asyncio.wait_for(request, self.timeout)
        except asyncio.TimeoutError as error:
            raise _Transient(f"no answer within {self.timeout:g} s") from error
        except openai.APIConnectionError as error:  # time-outs among them
            cause: BaseException = error
            while isinstance(cause, openai.APIConnectionError) and cause.__cause__:
                cause = cause.__cause__
            reason = self._quoted(cause) or type(cause).__name__
            raise _Transient(f"no answer: {reason}") from error
        except openai.APIStatusError as error:
            status, headers = error.status_code, error.response.headers
            said = self._refusal(status, error.response.content)
            if getattr(error, "code", None) == "insufficient_quota":
                raise ReasonerError(said) from error
            if status in (408, 409, 425, 429) or status >= 500:
                raise _Transient(said, _retry_after(headers)) from error
            redirects = 300 <= status < 400
            if redirects:  # another place would get question, image and perhaps the key
                place = self._quoted(headers.get("location", "nowhere"))
                said = f"redirects to {place}; if that is right, make it the base URL"
            if (redirects or status in (401, 403, 404)) and not self._answered:
                raise ReasonerError(f"{self._client.base_url.host}: {said}") from error
            raise self._lost(f"refused: {said}", not self._answered) from error
        return self._rollout(answer)

    def _rollout(self, body: bytes) -> Rollout:
        """Read an answer; whatever a reasoner says is a rollout, even nothing."""
        if len(body) > MAX_ANSWER_BYTES:
            raise self._lost(f"the answer is longer than {MAX_ANSWER_BYTES / 2**20:g} MiB", True)
        text, broken = _readable(body)
        try:
            answer = parse_json(text)
        except ValueError as error:
            raise _Transient(f"the answer is not JSON: {self._quoted(error)}") from error
        try:
            choice = answer["choices"][0]
            message, finish = choice["message"], choice.get("finish_reason")
            content, refusal = message.get("content"), message.get("refusal")
        except (TypeError, KeyError, IndexError, AttributeError) as error:
            said = _error_message(answer)
            reason = f"is an error: {self._quoted(said)}" if said else "holds no completion"
            raise _Transient(f"the answer {reason}") from error
        if finish == "content_filter" or refusal:
            raise self._lost(f"refused: {self._quoted(refusal or finish)}", False)
        if isinstance(content, list):  # parts, of which some are the text and others the thinking
            parts = [part for part in content if isinstance(part, dict)]
            texts = [part.get("text") for part in parts if part.get("type") in (None, "text")]
            content = "".join(text for text in texts if isinstance(text, str))
        if not isinstance(content, str | None):
            raise _Transient("the answer's content is not text")
        usage = answer.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        tokens_in = _number_of_tokens(usage.get("prompt_tokens"))
        tokens_out = _number_of_tokens(usage.get("completion_tokens"))
        if tokens_in is None or tokens_out is None:
            self.notes["do not say how many tokens they took, and count as none"] += 1
        if broken:
            self.notes["held broken characters, which are U+FFFD now"] += 1
        finish = self._quoted(finish) if isinstance(finish, str) else ""
        text = self._scrub_rollout(content or "")
        return Rollout(text, finish or "stop", tokens_in or 0, tokens_out or 0)

    def _refusal(self, status: int, body: bytes) -> str:
        """Status and message of an answer that is an error."""
        text, _ = _readable(body)
        with contextlib.suppress(ValueError):
            text = _error_message(parse_json(text)) or text
        return self._quoted(f"{status}: {text}")

    def _quoted(self, text: object) -> str:
        """What a server said, or an error that may quote it, as a part of a message."""
        # Cut before it is searched, with room for what the search takes out.
        return printable(self._scrub(str(text)[: 100 * MAX_QUOTED]), MAX_QUOTED)

    def _lost(self, reason: str, counts: bool) -> ItemError | ReasonerError:
        """The error for a lost rollout, or for the server if it has failed too often in a row."""
        self._lost_in_a_row += counts
        if self._lost_in_a_row >= GIVE_UP:
            return ReasonerError(f"{GIVE_UP} requests in a row failed, the last one: {reason}")
        return ItemError(reason)


class _Transient(Exception):
    """Worth another attempt; ``pause`` seconds of silence are what the server asks for."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


def _client_class(openai: Any) -> type:
    """The package's fastest HTTP client, made to take no more of an answer than there is room for.

    An answer over the limit is cut off a little above it. Other bodies than plain and gzipped ones,
    which were not asked for, are not unpacked.
    """

    class BoundedClient(openai.DefaultAioHttpClient):
        async def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
            try:
                response = await super().send(request, stream=True, **options)
                try:
                    encoding = response.headers.get("content-encoding", "identity").lower()
                    if encoding not in ("identity", "gzip", ""):
                        raise ValueError(f"the answer's encoding is {encoding}")
                    body = bytearray()
                    async with contextlib.aclosing(response.aiter_bytes()) as parts:
                        async for part in parts:
                            body += part
                            if len(body) > MAX_ANSWER_BYTES:
                                break
                finally:
                    await response.aclose()
            except Exception as error:  # three packages have each their own for broken HTTP
                raise openai.APIConnectionError(request=request) from error
            # Headers that say how to read the body (packing, characters) have had their say.
            headers = {
                name: response.headers[name]
                for name in ("retry-after", "location")
                if name in response.headers
            }
            return type(response)(
                response.status_code, headers=headers, content=bytes(body), request=request
            )

    return BoundedClient


def _passwords_of_proxies() -> Iterator[str]:
    """Names and passwords in the addresses of the proxies that the environment names."""
    for address in urllib.request.getproxies().values():
        with contextlib.suppress(ValueError):
            parts = urlsplit(address)
            for secret in filter(None, (parts.username, parts.password)):
                yield from {secret, unquote(secret)}


def _readable(body: bytes) -> tuple[str, bool]:
    """An answer's text, and whether it held what UTF-8 cannot: that is U+FFFD now."""
    try:
        text, broken = body.decode("utf-8-sig"), False
    except UnicodeDecodeError:
        text, broken = body.decode("utf-8-sig", "replace"), True

    def whole(escape: re.Match) -> str:
        nonlocal broken
        broken |= escape["half"] is not None
        return "\ufffd" if escape["half"] else escape[0]

    return _ESCAPE.sub(whole, text), broken


def _error_message(answer: Any) -> str | None:
    """The message of an answer that is an error, if it has one."""
    error = answer.get("error", answer) if isinstance(answer, dict) else None
    message = error.get("message", error.get("detail")) if isinstance(error, dict) else error
    return message if isinstance(message, str) else None


def _number_of_tokens(value: Any) -> int | None:
    """A number that a server stated, or None if it is no number of tokens."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # Comparisons with what is not a number are false.
    return int(value) if 0 <= value <= MAX_TOKENS and value == int(value) else None


def _retry_after(headers: Any) -> float:
    """Seconds the server wants to be left alone: a number or a date (RFC 9110, 10.2.3)."""
    value = headers.get("retry-after", "0")
    try:
        return float(value)
    except ValueError:
        pass
    try:
        return email.utils.parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, OverflowError):  # no date, or one outside the calendar
        return 0.0
