"""A stand-in for vLLM that scores with a tiny model, by its processor and one forward a prompt."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image

from reweighting.export.checkpoint import score_row
from tests.export.runs import open_run
from tests.support.model_server import last_response, path_server, score_answer

Fault = Callable[[int, dict], bytes | None]


class Scores:
    """Scores requests as vLLM would: chat template, processor, z at the last token.

    Nothing of our encoder, prefix trees or heads is used.

    Args:
        run: a directory of a run with a linear head or labels.
    """

    def __init__(self, run: Path) -> None:
        model = open_run(run)
        self.path = "/classify" if model.LN is not None else "/pooling"
        self.processor = model.encoder.processor
        self.base = model.base_model
        self.row, self.bias = score_row(model)
        self.asked: list[dict] = []  # every request that was scored
        self._lock = threading.Lock()

    def __call__(self, path: str, body: dict) -> dict:
        """The answer to a request, which is noted."""
        assert path == self.path
        found = self.answer(body)
        self.asked.append(body)
        return found

    @torch.no_grad()
    def answer(self, body: dict) -> dict:
        """The answer to a request."""
        assert body["add_generation_prompt"] and not body["use_activation"] and "task" not in body
        images, turns = [], []
        for message in body["messages"]:
            parts = []
            for part in message["content"]:
                if part["type"] == "image_url":
                    head, encoded = part["image_url"]["url"].split(",")
                    assert head == "data:image/png;base64"
                    images.append(Image.open(BytesIO(base64.b64decode(encoded))))
                    part = {"type": "image"}
                parts.append(part)
            turns.append({"role": message["role"], "content": parts})
        text = self.processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        with self._lock:
            inputs = self.processor(
                text=[text], images=images or None, add_special_tokens=False, return_tensors="pt"
            )
            hidden = self.base.model(**inputs, use_cache=False).last_hidden_state[0, -1]
            z = float(self.row[0] @ hidden.double() + self.bias)
        return score_answer(self.path, z, inputs["input_ids"].shape[1])


@contextmanager
def vllm_server(scores: Scores, fault: Fault = lambda number, body: None) -> Iterator[str]:
    """A server in a thread of this process; gives its base URL.

    Args:
        fault: gets the number of a request, from 0, and its body; returns the bytes of a whole HTTP
            response that is sent in place of the score, or None.
    """
    numbers, lock = iter(range(10**9)), threading.Lock()

    def reply(path, headers, body: bytes) -> list[bytes]:
        with lock:
            number = next(numbers)
        asked = json.loads(body)
        wrong = fault(number, asked)
        return [wrong or last_response(json.dumps(scores(path, asked)).encode())]

    with path_server(reply) as url:
        yield url.removesuffix("/v1")
