"""A reasoner behind an OpenAI-compatible server: vLLM, SGLang, ``transformers serve``, OpenAI."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..system.server.endpoint import Endpoint
from .completion import read_completion
from .reasoner import MissingReasonerError, Query, Rollout, prepare_image, user_text

RESERVED = ("messages", "n", "stream")  # fields of a request that only the program sets


class Server:
    """Samples from an OpenAI-compatible server; a :class:`~.reasoner.Reasoner`.

    Keys, retries and limits are those of :class:`~..system.server.endpoint.Endpoint`. Whatever can
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
        limits: arguments of :class:`~..system.server.endpoint.Endpoint`.

    Raises:
        MissingReasonerError: the options are unusable.
        UnusableServerError: the package is missing, or key or address are unusable.
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
        **limits: Any,
    ) -> None:
        if reserved := [name for name in RESERVED if name in (request_options or {})]:
            raise MissingReasonerError(
                f"request options: {reserved[0]!r} is set by the program and cannot be one"
            )
        self._endpoint = Endpoint(base_url, **limits)
        self.instruction = instruction
        self.max_image_size = max_image_size
        self.continuation = continuation
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

    @property
    def retries(self) -> int:
        """Attempts after the first, of all requests together."""
        return self._endpoint.retries

    async def sample(self, query: Query, seeds: Sequence[int]) -> list[Rollout]:
        return [await self._one(query, seed) for seed in seeds]

    async def close(self) -> None:
        await self._endpoint.close()

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
        """One rollout; whatever a reasoner says is one, even nothing."""
        endpoint = self._endpoint
        completion = await endpoint.post(
            "/chat/completions", lambda: self._body(query, seed), read_completion
        )
        tokens_in, tokens_out = completion.tokens_in, completion.tokens_out
        if tokens_in is None or tokens_out is None:
            self.notes["do not say how many tokens they took, and count as none"] += 1
        if completion.broken:
            self.notes["held broken characters, which are U+FFFD now"] += 1
        finish = endpoint.quoted(completion.finish_reason or "") or "stop"
        text = endpoint.scrub_text(completion.text)
        endpoint.tokens.spend((tokens_in or 0) + (tokens_out or 0))
        return Rollout(text, finish, tokens_in or 0, tokens_out or 0)
