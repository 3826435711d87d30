"""Good input spoiled in one place: values, JSON texts, bytes and images."""

from __future__ import annotations

import io
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# Values that have broken programs, this one among them.
ODD = [
    *(None, True, False, 0, 1, -1, 2, 0.5, -0.0, 1e308, float("inf"), float("nan"), 10**20),
    *(10**400, 10**5000, "", " ", "\n", "0", "null", [], {}, [[]], [None], {"": None}),
    *("\ud83d", "a\x00b", "\x1b[31mred\x1b]0;title\x07", "\x9b31m", "\u202eabc", "\u2028", "\x85"),
    *("<image>", "<|image_pad|>", "<|im_end|>", "<|endoftext|>", "<|vision_start|>", "</img>"),
    *("-" * 60, "_" * 60 + "x", "> " * 40, "#*" * 40, "Step 1: " * 30, "Final answer: " * 20),
    *("Step 1:\nStep 2:\nStep 4:", "Step 99999999999999999999:", "Final answer", "\\boxed{{{{"),
    *("{" * 500, "9" * 400, "$\\frac{1}{" * 50, "2^(9^(9^9))", "\\[\n\\boxed{4}\n\\]", "é" * 3000),
    *("😀" * 50, "\u202f", "Step\u202f1:", "步骤1：", "../../etc/passwd", "/dev/zero", "file:///x"),
    *("http://localhost:1/x.png", "data:image/png;base64,AAAA", "x" * 4_000, "~", "*", "nul"),
]
NAMES = [
    *("input", "add", "image_path", "image", "dataset", "accuracy", "id", "sid", "true_false"),
    *("question", "candidates", "candidate", "answer", "choices", "conversations", "response"),
]


def odd(rng: random.Random) -> Any:
    """A value that is rarely expected."""
    value = rng.choice(ODD)
    if rng.random() < 0.05:
        for _ in range(rng.choice([5, 50, 99, 100, 101, 500, 3000])):
            value = [value]
    return value


def spoil_value(rng: random.Random, value: Any) -> Any:
    """``value`` with one thing changed, somewhere inside."""
    if rng.random() < 0.15 or not isinstance(value, (dict, list, str)) or not value:
        return odd(rng)
    if isinstance(value, str):
        place, piece = rng.randrange(len(value) + 1), odd(rng)
        piece = piece if isinstance(piece, str) else as_text(piece)[:200]
        rest = value[place:] if rng.random() < 0.7 else ""
        return value[:place] + piece + rest
    if isinstance(value, list):
        value, place = list(value), rng.randrange(len(value))
        kind = rng.random()
        if kind < 0.1:
            del value[place]
        elif kind < 0.2:
            value.insert(place, odd(rng))
        elif kind < 0.25:
            value = value * rng.choice([2, 50])
        else:
            value[place] = spoil_value(rng, value[place])
        return value
    value, name = dict(value), rng.choice(list(value))
    kind = rng.random()
    if kind < 0.15:
        del value[name]
    elif kind < 0.25:
        value[rng.choice(NAMES)] = odd(rng)
    elif kind < 0.3:
        value[rng.choice(NAMES)] = value.pop(name)
    else:
        value[name] = spoil_value(rng, value[name])
    return value


def as_text(value: Any) -> str:
    """A text as it is, another value as JSON."""
    return value if isinstance(value, str) else _dump(value, ascii_only=False)


def to_bytes(rng: random.Random, value: Any, lines: bool = False) -> bytes:
    """JSON, as an array or in lines; half a surrogate pair becomes an escape or broken UTF-8."""
    ascii_only = rng.random() < 0.5
    if lines and isinstance(value, list):
        text = "\n".join(_dump(item, ascii_only) for item in value) + "\n"
    else:
        text = _dump(value, ascii_only)
    return text.encode("utf-8", "surrogatepass")


def _dump(value: Any, ascii_only: bool) -> str:
    # Python's writer gives up on deep nesting and on long numbers; a file can hold them.
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(value, ensure_ascii=ascii_only)
    except RecursionError:
        return "[" * 3000 + "1" + "]" * 3000
    finally:
        sys.set_int_max_str_digits(limit)


def spoil_bytes(rng: random.Random, body: bytes) -> bytes:
    """``body`` cut, filled up or changed at one place."""
    place = rng.randrange(len(body) + 1)
    length = rng.choice([1, 2, 8, 100, len(body)])
    kind = rng.randrange(9)
    if kind == 0:
        return body[:place]
    if kind == 1:
        return body[:place] + rng.randbytes(length)[:1000] + body[place + length :]
    if kind == 2:
        return body[:place] + body[place + length :]
    if kind == 3:
        return body[:place] + body[max(0, place - length) : place] * 3 + body[place:]
    if kind == 4:
        return rng.choice([b"", b"\x00" * 64, b"PK\x03\x04", b"version https://git-lfs", b"[]"])
    if kind == 5:
        return b"\xef\xbb\xbf" + body
    if kind == 6:
        return body.replace(b"\n", b"\r\n")
    if kind == 7:
        changed = bytearray(body)
        for _ in range(rng.choice([1, 5, 50])):
            if changed:
                changed[rng.randrange(len(changed))] = rng.randrange(256)
        return bytes(changed)
    return body[:place] + rng.choice([b"\xff", b"\xe2\x80\xa8", b"\x85", b"}", b'"']) + body[place:]


def spoil_image(rng: random.Random, path: Path) -> None:
    """Something at ``path`` that may be an image."""
    kind = rng.random()
    if kind < 0.08:
        special = rng.choice(["fifo", "folder", "loop", "missing", "empty", "text", "device"])
        if special == "fifo":
            os.mkfifo(path)
        elif special == "folder":
            path.mkdir()
        elif special == "loop":
            path.symlink_to(path.name)
        elif special == "device":
            path.symlink_to("/dev/zero")
        elif special != "missing":
            path.write_bytes(b"" if special == "empty" else b"this is no image\n" * 9)
        return
    mode = rng.choice(["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I", "F", "I;16"])
    size = rng.choice(
        [(1, 1), (1, 300), (300, 1), (2, 400), (3, 600), (84, 84), (700, 4), (60, 90)]
    )
    if mode == "I;16":
        pixels = np.random.default_rng(rng.randrange(99)).integers(0, 2**16, size, dtype=np.uint16)
        image = Image.fromarray(pixels)
    else:
        image = Image.new("RGB", size, tuple(rng.randrange(256) for _ in range(3)))
        image = image.convert("RGBA").convert(mode) if mode in ("LA", "PA") else image.convert(mode)
    body = io.BytesIO()
    for form in rng.sample(["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "ICO"], 8):
        try:
            image.save(body, form)
            break
        except (OSError, ValueError, KeyError):
            body = io.BytesIO()
    content = body.getvalue()
    if kind < 0.7:
        content = spoil_bytes(rng, content)
    elif kind < 0.8 and content.startswith(b"\x89PNG"):  # claims to be huge
        content = content[:16] + rng.randbytes(8) + content[24:]
    path.write_bytes(content)
