"""A reasoner behind an OpenAI-compatible server: vLLM, SGLang, ``transformers serve``, OpenAI.

The ``openai`` package speaks the protocol. Retries are made here: eight of the package's own (3.57)
end after 35 s, when a server that restarts is not back yet; it asks again when a quota is used up,
but not when a body is broken, and it knows no rate limits.
"""

from __future__ import annotations

import asyncio
import email.utils
import os
import random
import re
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..system.terminal import printable
from .completion import MAX_ANSWER_BYTES, NoCompletion, Refused, error_text, read_completion
from .reasoner import (
    ItemError,
    MissingReasonerError,
    Query,
    ReasonerError,
    Rollout,
    prepare_image,
    user_text,
)
from .scrubbing import proxy_passwords, scrubber

MAX_QUOTED = 150  # characters of a server's message that a reason quotes
# Shortest secrets that are searched for: in messages, and in rollouts, which a placeholder for a
# key ("EMPTY") must not change.
SECRET_IN_MESSAGES, SECRET_IN_ROLLOUTS = 4, 8
FIRST_DELAY, LONGEST_DELAY = 0.5, 60.0  # seconds between attempts, doubled each time
LONGEST_PAUSE = 600.0  # seconds that a server may ask for
GIVE_UP = 20  # rollouts lost in a row after which the server counts as gone
INSTALL = "pip install 'openai[aiohttp]'"
RESERVED = ("messages", "n", "stream")  # fields of a request that only the program sets


class Pace:
    """At most so many units per minute: units may be overspent and are then waited for.

    That suits tokens, whose number is known only once the response has arrived.
    """

    def __init__(self, per_minute: float | None) -> None:
        self.seconds_per_unit = 60 / per_minute if per_minute else 0.0
        self._free_at = 0.0

    async def wait(self) -> None:
        """Wait until nothing is overspent."""
        while (owed := self._free_at - time.monotonic()) > 0:
            await asyncio.sleep(owed)

    def pause(self, seconds: float) -> None:
        """Let everybody wait at least so long."""
        self._free_at = max(self._free_at, time.monotonic() + seconds)

    def spend(self, units: float) -> None:
        """Let the next ones wait for these units."""
        self._free_at = max(self._free_at, time.monotonic()) + units * self.seconds_per_unit


class Server:
    """Samples from an OpenAI-compatible server; a :class:`~.reasoner.Reasoner`.

    The key comes from the environment (``OPENAI_API_KEY``) and is sent to the server only:
    redirects are not followed, and the key is removed from everything the server says. No answer is
    trusted: at most :data:`~.completion.MAX_ANSWER_BYTES` of it are read into memory. Whatever can
    be read of a completion is kept; ``notes`` counts what could not be read.

    Args:
        model: its name on the server.
        instruction: what follows the question in the user's turn.
        base_url: ``http://host:port/v1``; None: ``OPENAI_BASE_URL``, else OpenAI itself.
        max_image_size: longest side of an image in pixels.
        continuation: how a prefix is sent: ``instruction``, quoted in the user's turn, which every
            server understands; or ``prefill``, as the beginning of the assistant's turn, which vLLM
            and SGLang continue.
        request_options: further fields of every request; None as a value leaves a field out.
        concurrency: requests at a time.
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
        self._fields = {
            "model": model,
            "temperature": temperature,
            "max_completion_tokens": max_tokens,
            "seed": 0,  # every rollout has its own
            **(request_options or {}),
        }
        self.settings = {
            **self._fields,
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
        """Make the client and the functions that take its secrets out of texts."""
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not (key.isascii() and key.isprintable()):  # it could not be sent
            raise MissingReasonerError("OPENAI_API_KEY holds characters that no key has")
        address = base_url or os.environ.get("OPENAI_BASE_URL") or ""
        if "@" in address.partition("?")[0]:  # wherever a mistyped address has it; not shown
            raise MissingReasonerError(
                "a server's address holds no @, no name and no password; "
                "the key is in OPENAI_API_KEY"
            )
        secrets = [key, *proxy_passwords()]
        self._scrub, self._scrub_rollout = (
            scrubber(secret for secret in secrets if len(secret) >= least)
            for least in (SECRET_IN_MESSAGES, SECRET_IN_ROLLOUTS)
        )
        if address and not re.match("https?://[^/]", address):
            raise MissingReasonerError(f"{self._quoted(address)}: not http://HOST or https://HOST")
        try:
            import openai

            from .http_client import BoundedClient
        except (ImportError, AttributeError) as error:
            raise MissingReasonerError(f"a server needs the openai package: {INSTALL}") from error
        try:
            self._client = openai.AsyncOpenAI(
                base_url=base_url,
                api_key=key or "none",  # one's own server needs no key, but the package does
                timeout=timeout,
                max_retries=0,
                http_client=BoundedClient(timeout=timeout, follow_redirects=False),
                default_headers={"Accept-Encoding": "gzip"},
            )
        except RuntimeError as error:  # without aiohttp
            raise MissingReasonerError(f"a server needs the openai package: {INSTALL}") from error
        except Exception as error:  # the packages below have several for an address
            place = self._quoted(address) if address else "the environment's proxies"
            reason = self._quoted(error)
            raise MissingReasonerError(f"{place}: cannot be used: {reason}") from error
        self._openai = openai

    async def sample(self, query: Query, seeds: Sequence[int]) -> list[Rollout]:
        return [await self._one(query, seed) for seed in seeds]

    async def close(self) -> None:
        await self._client.close()

    def _body(self, query: Query, seed: int) -> dict[str, Any]:
        """The request as JSON."""
        prefill = query.prefix if self.continuation == "prefill" else ""
        quoted = "" if prefill else query.prefix
        text = user_text(query.question, self.instruction, quoted)
        image = prepare_image(query.image, self.max_image_size)
        content = [
            {"type": "image_url", "image_url": {"url": image.data_url}},
            {"type": "text", "text": text},
        ]
        body = {**self._fields, "messages": [{"role": "user", "content": content}]}
        if prefill:
            body["messages"].append({"role": "assistant", "content": prefill + "\n"})
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        if body["seed"] is not None:
            body["seed"] = seed
        return {name: value for name, value in body.items() if value is not None}

    async def _one(self, query: Query, seed: int) -> Rollout:
        """One rollout; failed attempts are repeated up to ``max_retries`` times."""
        async with self._slots:  # kept while waiting: a server in trouble gets fewer requests
            attempt = 0
            while True:
                await self._requests.wait()
                await self._tokens.wait()
                self._requests.spend(1)
                try:
                    rollout = await self._attempt(self._body(query, seed))
                except _Transient as trouble:
                    if attempt == self.max_retries:
                        times = f" ({attempt + 1} attempts)" if attempt else ""
                        raise self._lost(f"{trouble}{times}", True) from trouble
                    if trouble.pause > 0:  # the server asks for it, and all requests keep it
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
        """One request.

        Raises:
            _Transient: another attempt may succeed.
            ItemError: this request is refused.
            ReasonerError: every request would be.
        """
        openai = self._openai
        try:
            # The plain endpoint: the answer is checked below rather than trusted.
            request = self._client.post("/chat/completions", body=body, cast_to=bytes)
            # The client limits the time of each read, which an answer byte by byte never exceeds.
            answer = await asyncio.wait_for(request, self.timeout)
        except asyncio.TimeoutError as error:
            raise _Transient(f"no answer within {self.timeout:g} s") from error
        except openai.APIConnectionError as error:  # including time-outs
            cause: BaseException = error
            while isinstance(cause, openai.APIConnectionError) and cause.__cause__:
                cause = cause.__cause__
            reason = self._quoted(cause) or type(cause).__name__
            raise _Transient(f"no answer: {reason}") from error
        except openai.APIStatusError as error:
            status, headers = error.status_code, error.response.headers
            said = self._quoted(f"{status}: {error_text(error.response.content)}")
            if getattr(error, "code", None) == "insufficient_quota":
                raise ReasonerError(said) from error
            if status in (408, 409, 425, 429) or status >= 500:
                raise _Transient(said, retry_after(headers)) from error
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
        try:
            completion = read_completion(body)
        except NoCompletion as error:
            said = f": {self._quoted(error.said)}" if error.said else ""
            raise _Transient(f"{error}{said}") from error
        except Refused as error:
            raise self._lost(f"refused: {self._quoted(error)}", False) from error
        tokens_in, tokens_out = completion.tokens_in, completion.tokens_out
        if tokens_in is None or tokens_out is None:
            self.notes["do not say how many tokens they took, and count as none"] += 1
        if completion.broken:
            self.notes["held broken characters, which are U+FFFD now"] += 1
        finish = self._quoted(completion.finish_reason or "") or "stop"
        text = self._scrub_rollout(completion.text)
        return Rollout(text, finish, tokens_in or 0, tokens_out or 0)

    def _quoted(self, text: object) -> str:
        """What a server said, or an error that may quote it, as a part of a message."""
        # Cut before the search, with room for what the search takes out.
        return printable(self._scrub(str(text)[: 100 * MAX_QUOTED]), MAX_QUOTED)

    def _lost(self, reason: str, counts: bool) -> ItemError | ReasonerError:
        """The error for a lost rollout, or for the server if it has failed too often in a row.

        Args:
            counts: whether the reason may lie with the server rather than with the query.
        """
        self._lost_in_a_row += counts
        if self._lost_in_a_row >= GIVE_UP:
            return ReasonerError(f"{GIVE_UP} requests in a row failed, the last one: {reason}")
        return ItemError(reason)


class _Transient(Exception):
    """Worth another attempt, after ``pause`` seconds if the server asks for them."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


def retry_after(headers: Any) -> float:
    """Seconds the server asks to be left alone: a number or a date (RFC 9110, 10.2.3)."""
    value = headers.get("retry-after", "0")
    try:
        return float(value)
    except ValueError:
        pass
    try:
        return email.utils.parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, OverflowError):  # no date, or one outside the calendar
        return 0.0
