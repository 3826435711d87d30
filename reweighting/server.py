"""A reasoner behind an OpenAI-compatible server: vLLM, SGLang, ``transformers serve``, OpenAI.

The ``openai`` package speaks the protocol. Retries are made here: the package knows neither rate
limits nor broken bodies, and gives up before a server that restarts is back.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import os
import random
import time
from collections.abc import Sequence
from typing import Any

from .reasoners import (
    ItemError,
    MissingReasonerError,
    Prompt,
    ReasonerError,
    Rollout,
    prepare_image,
    user_text,
)

FIRST_DELAY, LONGEST_DELAY = 0.5, 60.0  # seconds between attempts, doubled each time
LONGEST_PAUSE = 600.0  # seconds that a server may ask for
GIVE_UP = 20  # rollouts lost in a row, after which the server counts as gone
INSTALL = "pip install 'openai[aiohttp]'"


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
    """Samples from an OpenAI-compatible server; a :class:`~reweighting.reasoners.Reasoner`.

    The key comes from the environment (``OPENAI_API_KEY``) and goes nowhere but to the server.

    Args:
        model: its name on the server.
        base_url: ``http://host:port/v1``; None: ``OPENAI_BASE_URL``, else OpenAI itself.
        continuation: how a prefix is put: ``instruction``, quoted in the user's turn, which every
            server understands; or ``prefill``, as the opening of the assistant's turn, which vLLM
            and SGLang continue.
        request_options: further fields of every request; None as a value leaves a field out.
        timeout: seconds for one attempt.
        max_retries: attempts after the first, for each rollout.
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
        try:
            import openai

            transport = openai.DefaultAioHttpClient(timeout=timeout)
        except (ImportError, AttributeError, RuntimeError) as error:
            raise MissingReasonerError(f"a server needs the openai package: {INSTALL}") from error
        self._openai = openai
        self._client = openai.AsyncOpenAI(
            base_url=base_url,
            # Servers of one's own want no key, but the package does.
            api_key=os.environ.get("OPENAI_API_KEY") or "none",
            timeout=timeout,
            max_retries=0,
            http_client=transport,
        )
        self.instruction = instruction
        self.max_image_size = max_image_size
        self.continuation = continuation
        self.timeout = timeout
        self.max_retries = max_retries
        self.retries = 0
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
                        raise self._lost(f"{trouble} ({attempt + 1} attempts)", True) from trouble
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
            request = self._client.post("/chat/completions", body=body, cast_to=object)
            # The client's own limit is on every read, which a trickle of bytes never meets.
            return self._rollout(await asyncio.wait_for(request, self.timeout))
        except asyncio.TimeoutError as error:
            raise _Transient(f"no answer within {self.timeout:g} s") from error
        except openai.APIConnectionError as error:  # time-outs among them
            reason = _shortened(error.__cause__ or "") or _shortened(error)
            raise _Transient(f"no answer: {reason}") from error
        except openai.APIStatusError as error:
            status, said = error.status_code, _shortened(error.message)
            if getattr(error, "code", None) == "insufficient_quota":
                raise ReasonerError(said) from error
            if status in (408, 409, 425, 429) or status >= 500:
                raise _Transient(said, _retry_after(error.response.headers)) from error
            if status in (401, 403, 404) and not self._answered:
                raise ReasonerError(f"{self._client.base_url.host}: {said}") from error
            raise self._lost(f"refused: {said}", not self._answered) from error
        except json.JSONDecodeError as error:
            raise _Transient("the answer is not JSON") from error

    def _rollout(self, answer: Any) -> Rollout:
        """Read an answer; whatever a reasoner says is a rollout, even nothing."""
        try:
            choice = answer["choices"][0]
            message, finish = choice["message"], choice.get("finish_reason")
            text = message.get("content")
            usage = answer.get("usage") or {}
            tokens = [int(usage.get(f"{kind}_tokens") or 0) for kind in ("prompt", "completion")]
        except (TypeError, KeyError, IndexError, AttributeError, ValueError) as error:
            raise _Transient("the answer holds no completion") from error
        if finish == "content_filter" or message.get("refusal"):
            raise self._lost(f"refused: {_shortened(message.get('refusal') or finish)}", False)
        if not isinstance(text, str | None):
            raise _Transient("the answer's content is not text")
        return Rollout(text or "", finish or "stop", *tokens)

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


def _retry_after(headers: Any) -> float:
    """Seconds the server wants to be left alone: a number or a date (RFC 9110, 10.2.3)."""
    value = headers.get("retry-after", "0")
    try:
        return float(value)
    except ValueError:
        pass
    try:
        return email.utils.parsedate_to_datetime(value).timestamp() - time.time()
    except ValueError:
        return 0.0


def _shortened(text: Any) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= 200 else line[:197] + "..."
