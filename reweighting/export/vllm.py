"""Requests to a vLLM server that serves an exported model, and its answers.

Their shapes are those of vLLM 0.33.0: ``ClassificationChatRequest`` and ``ClassificationResponse``
of vllm/entrypoints/pooling/classify/protocol.py, ``PoolingChatRequest`` and ``PoolingResponse`` of
vllm/entrypoints/pooling/pooling/protocol.py. They were read there; nothing here ran against it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from ..system.files import is_number
from ..system.server.body import Unreadable, error_message, number_of_tokens, read_json_body
from ..system.terminal import printable

# Without a task, ``/pooling`` uses that of the server (vllm/entrypoints/pooling/pooling/serving.py
# refuses every other one). It is ``classify`` as the server is started by our model card, which
# keeps the cache of prefixes; with ``token_classify`` every prompt is computed anew
# (vllm/pooling_params.py).
PATHS = {"linear": "/classify", "plus_minus": "/pooling"}
LARGEST = 1e4  # log-odds: no model that was trained comes near


def request(turns: Sequence[dict], urls: Sequence[str]) -> dict[str, Any]:
    """The body of a request for the log-odds of one prompt.

    Args:
        turns: of the conversation, as :func:`~..reward_model.encoder.conversation` gives them.
        urls: of the images that it shows, in their order.
    """
    messages, left = copy.deepcopy(list(turns)), iter(urls)
    for message in messages:
        message["content"] = [
            {"type": "image_url", "image_url": {"url": next(left)}}
            if part["type"] == "image"
            else part
            for part in message["content"]
        ]
    # Without its activation, a sigmoid, the score is z itself.
    return {"messages": messages, "add_generation_prompt": True, "use_activation": False}


def read_score(body: bytes) -> tuple[float, int]:
    """The log-odds z of the one prompt that was sent, and its number of tokens, 0 if unsaid.

    Raises:
        Unreadable: the body is not JSON, an error, or holds anything but one possible z.
    """
    answer, _ = read_json_body(body)
    items = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(items, list):
        if said := error_message(answer):
            raise Unreadable("the answer is an error", said)
        raise Unreadable("the answer holds no scores")
    if len(items) != 1 or not isinstance(items[0], dict) or items[0].get("index") != 0:
        raise Unreadable(f"the answer holds {len(items)} scores, not that of the one prompt")
    if ("probs" in items[0]) == ("data" in items[0]):
        raise Unreadable("the answer must hold either 'probs' or 'data'")
    values = items[0].get("probs", items[0].get("data"))
    if isinstance(values, list) and values and isinstance(values[-1], list):
        values = values[-1]  # of every token; the last one counts
    if not isinstance(values, list) or len(values) != 1:
        raise Unreadable("the answer holds no single number, so no reward model is served")
    if not is_number(values[0]) or abs(values[0]) > LARGEST:
        raise Unreadable(f"the answer's score is no log-odds: {printable(values[0], 30)}")
    usage = answer.get("usage")
    tokens = number_of_tokens(usage.get("prompt_tokens")) if isinstance(usage, dict) else None
    return float(values[0]), tokens or 0
