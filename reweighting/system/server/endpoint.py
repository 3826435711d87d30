"""Requests to a server: limited in number, time and size, and repeated where that may help.

The ``openai`` package sends them. Retries are made here: eight of the package's own (3.57) end
after 35 s, when a server that restarts is not back yet; it asks again when a quota is used up, but
not when a body is broken, and it knows no rate limits.
"""

from __future__ import annotations

import asyncio
import email.utils
import os
import random
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

from ..terminal import printable
from .body import MAX_ANSWER_BYTES, Refused, Unreadable, error_text
from .errors import ItemError, ServerError, UnusableServerError
from .scrubbing import proxy_passwords, scrubber

MAX_QUOTED = 150  # characters of a server's message that a reason quotes
# Shortest secrets that are searched for: in messages, and in texts that are kept, which a
# placeholder for a key ("EMPTY") must not change.
SECRET_IN_MESSAGES, SECRET_IN_TEXTS = 4, 8
FIRST_DELAY, LONGEST_DELAY = 0.5, 60.0  # seconds between attempts, doubled each time
LONGEST_PAUSE = 600.0  # seconds that a server may ask for
GIVE_UP = 20  # answers lost in a row after which the server counts as gone
INSTALL = "pip install 'openai[aiohttp]'"
_NOT_THERE = (401, 403, 404, 501)  # a wrong key, a wrong path, a model that cannot do this

Answer = TypeVar("Answer")


class Pace:
    """At most so many units per minute: units may be overspent and are then waited for.

    That suits tokens, whose number is known only once the answer has arrived.
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


class Endpoint:
    """Sends requests to a server and reads its answers.

    The key comes from the environment and is sent to the server only: redirects are not followed,
    and the key is removed from everything the server says. No answer is trusted: at most
    :data:`~.body.MAX_ANSWER_BYTES` of it are read into memory.

    Args:
        base_url: as ``http://host:port/v1``; None: ``OPENAI_BASE_URL``, else OpenAI itself.
        key_variable: of the environment.
        concurrency: requests at a time.
        timeout: seconds for one attempt.
        max_retries: attempts after the first, for each request.
        tokens_per_minute: as far as the caller spends them from ``tokens``.

    Raises:
        UnusableServerError: the package is missing, or key or address are unusable.
    """

    def __init__(
        self,
        base_url: str | None,
        key_variable: str = "OPENAI_API_KEY",
        concurrency: int = 16,
        timeout: float = 300.0,
        max_retries: int = 8,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
    ) -> None:
        self._connect(base_url, key_variable, timeout)
        self.timeout = timeout
        self.max_retries = max_retries
        self.retries = 0
        self.tokens = Pace(tokens_per_minute)
        self._slots = asyncio.Semaphore(concurrency)
        self._requests = Pace(requests_per_minute)
        self._answered = False
        self._lost_in_a_row = 0

    def _connect(self, base_url: str | None, key_variable: str, timeout: float) -> None:
        """Make the client and the functions that take its secrets out of texts."""
        key = os.environ.get(key_variable, "").strip()
        if not (key.isascii() and key.isprintable()):  # it could not be sent
            raise UnusableServerError(f"{key_variable} holds characters that no key has")
        address = os.environ.get("OPENAI_BASE_URL", "") if base_url is None else base_url
        if "@" in address.partition("?")[0]:  # wherever a mistyped address has it; not shown
            raise UnusableServerError(
                "a server's address holds no @, no name and no password; "
                f"the key is in {key_variable}"
            )
        secrets = [key, *proxy_passwords()]
        self._scrub, self.scrub_text = (
            scrubber(secret for secret in secrets if len(secret) >= least)
            for least in (SECRET_IN_MESSAGES, SECRET_IN_TEXTS)
        )
        given = base_url is not None or address  # otherwise it is OpenAI itself
        if given and not re.match("https?://[^/]", address):
            raise UnusableServerError(f"{self.quoted(address)}: not http://HOST or https://HOST")
        try:
            import openai

            from .http_client import BoundedClient
        except (ImportError, AttributeError) as error:
            raise UnusableServerError(f"a server needs the openai package: {INSTALL}") from error
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
            raise UnusableServerError(f"a server needs the openai package: {INSTALL}") from error
        except Exception as error:  # the packages below have several for an address
            place = self.quoted(address) if address else "the environment's proxies"
            reason = self.quoted(error)
            raise UnusableServerError(f"{place}: cannot be used: {reason}") from error
        self._openai = openai

    async def close(self) -> None:
        """Release connections."""
        await self._client.close()

    async def post(
        self, path: str, body: Callable[[], dict[str, Any]], read: Callable[[bytes], Answer]
    ) -> Answer:
        """What ``read`` makes of the answer; failed attempts are repeated.

        Args:
            path: is added to the base URL.
            body: makes the request as JSON, anew for every attempt: what waits holds no images.
            read: raises :class:`~.body.Unreadable` where another attempt may give a better answer,
                :class:`~.body.Refused` where none will.

        Raises:
            ItemError: this answer is lost.
            ServerError: every other one would be, too.
        """
        async with self._slots:  # kept while waiting: a server in trouble gets fewer requests
            attempt = 0
            while True:
                await self._requests.wait()
                await self.tokens.wait()
                self._requests.spend(1)
                try:
                    answer = self._read(await self._attempt(path, body()), read)
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
                    return answer

    async def _attempt(self, path: str, body: dict[str, Any]) -> bytes:
        """One request.

        Raises:
            _Transient: another attempt may succeed.
            ItemError: this request is refused.
            ServerError: every request would be.
        """
        openai = self._openai
        try:
            # The plain endpoint: the answer is checked by the caller rather than trusted.
            request = self._client.post(path, body=body, cast_to=bytes)
            # The client limits the time of each read, which an answer byte by byte never exceeds.
            return await asyncio.wait_for(request, self.timeout)
        except asyncio.TimeoutError as error:
            raise _Transient(f"no answer within {self.timeout:g} s") from error
        except openai.APIConnectionError as error:  # including time-outs
            cause: BaseException = error
            while isinstance(cause, openai.APIConnectionError) and cause.__cause__:
                cause = cause.__cause__
            reason = self.quoted(cause) or type(cause).__name__
            raise _Transient(f"no answer: {reason}") from error
        except openai.APIStatusError as error:
            status, headers = error.status_code, error.response.headers
            said = self.quoted(f"{status}: {error_text(error.response.content)}")
            if getattr(error, "code", None) == "insufficient_quota":
                raise ServerError(said) from error
            if status in (408, 409, 425, 429) or (status >= 500 and status not in _NOT_THERE):
                raise _Transient(said, retry_after(headers)) from error
            redirects = 300 <= status < 400
            if redirects:  # another place would get question, image and perhaps the key
                place = self.quoted(headers.get("location", "nowhere"))
                said = f"redirects to {place}; if that is right, make it the base URL"
            if (redirects or status in _NOT_THERE) and not self._answered:
                raise ServerError(f"{self._client.base_url.host}: {said}") from error
            raise self._lost(f"refused: {said}", not self._answered) from error

    def _read(self, body: bytes, read: Callable[[bytes], Answer]) -> Answer:
        """What ``read`` makes of an answer of limited length."""
        if len(body) > MAX_ANSWER_BYTES:
            raise self._lost(f"the answer is longer than {MAX_ANSWER_BYTES / 2**20:g} MiB", True)
        try:
            return read(body)
        except Unreadable as error:
            said = f": {self.quoted(error.said)}" if error.said else ""
            raise _Transient(f"{error}{said}") from error
        except Refused as error:
            raise self._lost(f"refused: {self.quoted(error)}", False) from error

    def quoted(self, text: object) -> str:
        """What a server said, or an error that may quote it, as a part of a message."""
        # Cut before the search, with room for what the search takes out.
        return printable(self._scrub(str(text)[: 100 * MAX_QUOTED]), MAX_QUOTED)

    def _lost(self, reason: str, counts: bool) -> ItemError | ServerError:
        """The error for a lost answer, or for the server if it has failed too often in a row.

        Args:
            counts: whether the reason may lie with the server rather than with the request.
        """
        self._lost_in_a_row += counts
        if self._lost_in_a_row >= GIVE_UP:
            return ServerError(f"{GIVE_UP} requests in a row failed, the last one: {reason}")
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
