"""The file itself: template, style, script and data in one, and nothing from elsewhere.

Whatever comes from users or models is data: JSON in a block that no browser runs, which the script
writes into the page as text, never as HTML. A policy in the page's head forbids every other script,
style and connection.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from importlib import resources
from io import BytesIO
from typing import Any

from PIL import Image

from ..records.images import Source, content_key, load_pixels, shrunk_size

QUALITY = 80  # of WebP
# Control characters, and marks that turn the direction of the text around them.
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class Pictures:
    """The images of a page, each of them once.

    Args:
        longest: images are shrunk until no side has more pixels.
    """

    def __init__(self, longest: int) -> None:
        self.longest = longest
        self.urls: list[str] = []
        self._numbers: dict[str, int] = {}

    def add(self, source: Source) -> int:
        """The number of an image in the page.

        Raises:
            What :func:`~..records.images.open_image` raises.
        """
        pixels = load_pixels(source)
        key = content_key(pixels)
        if key not in self._numbers:
            size = shrunk_size(pixels.size, self.longest)
            if size != pixels.size:
                pixels = pixels.resize(size, Image.Resampling.LANCZOS)
            file = BytesIO()
            pixels.save(file, "webp", quality=QUALITY)
            self._numbers[key] = len(self.urls)
            self.urls.append(_data_url("webp", file.getvalue()))
        return self._numbers[key]


def png_url(body: bytes) -> str:
    """A PNG file, such as a figure, as a ``data:`` URL."""
    return _data_url("png", body)


def _data_url(kind: str, body: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(body).decode()}"


def shown(text: str) -> str:
    """A text as the page shows it: what is invisible or turns other text around is spelled out."""
    return _HIDDEN.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", text.replace("\r\n", "\n"))


def make_page(data: dict[str, Any]) -> str:
    """The whole HTML file.

    Args:
        data: what ``page.js`` reads: ``images`` (URLs), ``selection`` and ``run``, see
            :mod:`.choices` and :mod:`.course`; either may be None.
    """
    style, script = _part("page.css"), _part("page.js")
    # "<" would end or open a block in the middle of a text; escaped it is the same JSON.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    page = _part("page.html")
    for name, value in {
        "policy": (
            f"default-src 'none'; img-src data:; style-src {_hash(style)}; "
            f"script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
        ),
        "style": style,
        "script": script,
        "data": text,  # last: what it holds is not looked through
    }.items():
        before, after = page.split(f"{{{{{name}}}}}", 1)
        page = before + value + after
    return page


def _part(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
