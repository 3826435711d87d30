"""The real Qwen2 tokenizer, built offline from the vocabulary in the package dashscope."""

from __future__ import annotations

import base64
import importlib.util
import itertools
from pathlib import Path

from transformers import Qwen2Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]


def vocabulary_file() -> Path | None:
    """The file of 151,643 byte sequences by rank, or None where dashscope is not installed."""
    found = importlib.util.find_spec("dashscope")
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).parent / "resources" / "qwen.tiktoken"
    return path if path.exists() else None


def qwen2_tokenizer(path: Path) -> Qwen2Tokenizer:
    """Turn ranked byte sequences into a vocabulary and merges.

    A token was merged from the two parts into which its bytes are split when only tokens of a lower
    rank are used.
    """
    ranks = {}
    for line in path.read_bytes().splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    letters = bytes_to_unicode()

    def text(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges = [
        tuple(map(text, _parts(token, rank, ranks)))
        for token, rank in sorted(ranks.items(), key=lambda item: item[1])
        if len(token) > 1
    ]
    return Qwen2Tokenizer(
        # The control tokens follow the vocabulary, in this order, from 151643 on.
        vocab={text(token): rank for token, rank in ranks.items()}
        | {token: len(ranks) + index for index, token in enumerate(SPECIAL_TOKENS)},
        merges=merges,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=SPECIAL_TOKENS,
    )


def _parts(token: bytes, rank: int, ranks: dict[bytes, int]) -> list[bytes]:
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        candidates = [ranks.get(a + b, rank) for a, b in itertools.pairwise(parts)]
        best = min(range(len(candidates)), key=candidates.__getitem__)
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts
