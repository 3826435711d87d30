"""Keys and passwords are taken out of what others say before it is printed or written."""

from __future__ import annotations

import base64
import contextlib
import html
import re
import string
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import unquote, urlsplit

PART = 12  # consecutive characters of a secret that must not be seen
LEVELS = 4  # of nested escapes that are resolved in the search
INSTEAD = "[secret]"
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_BACKSLASHED = re.compile(
    r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|U(00(?:0[0-9a-fA-F]|10)[0-9a-fA-F]{4})"
    r"|(?P<octal>[0-7]{1,3})|(?P<itself>.))"
)


def scrubber(secrets: Iterable[str]) -> Callable[[str], str]:
    """A function that returns a text without the secrets.

    They are found in upper and lower case, whole or any :data:`PART` characters of them (a server
    may cut its message), as they are or in base64 or hexadecimal, and behind escapes of URLs, HTML,
    JSON and Python. A text that holds a secret is returned with its escapes resolved, as a part of
    the secret may be among them; every other text is returned unchanged.

    This protects against accidents only. A server that wants to can write a key backwards, with
    spaces or as words, and nothing here finds that.
    """
    parts: dict[int, set[str]] = defaultdict(set)  # by length
    halves: dict[int, set[str]] = defaultdict(set)
    for form in {form.translate(_LOWER) for secret in secrets for form in _forms(secret)}:
        size = min(PART, len(form))
        for known, length in ((parts[size], size), (halves[size], (size + 1) // 2)):
            known.update(form[i : i + length] for i in range(len(form) - length + 1))

    def without(text: str) -> str:
        lower, seen = text.translate(_LOWER), bytearray(len(text))
        for size, known in parts.items():
            half = (size + 1) // 2
            # Wherever a part is, one of these places has half of it. Most texts are long and hold
            # no secret, so looking at these few places first saves time.
            if any(lower[i : i + half] in halves[size] for i in range(0, len(text), half)):
                for i in range(len(text) - size + 1):
                    if lower[i : i + size] in known:
                        seen[i : i + size] = b"x" * size
        kept, end = [], 0
        for run in re.finditer(b"x+", seen):
            kept += [text[end : run.start()], INSTEAD]
            end = run.end()
        return "".join([*kept, text[end:]])

    def scrub(text: str) -> str:
        scrubbed = text
        for level in _levels(text) if parts else ():
            found = without(level)
            if found != level:
                scrubbed = found  # the deepest such level shows most of the secret
        return scrubbed

    return scrub


def proxy_passwords() -> Iterator[str]:
    """Names and passwords in the addresses of the proxies that the environment names."""
    for address in urllib.request.getproxies().values():
        with contextlib.suppress(ValueError):
            parts = urlsplit(address)
            for secret in filter(None, (parts.username, parts.password)):
                yield from {secret, unquote(secret)}


def _forms(secret: str) -> Iterator[str]:
    """A secret and its encodings, as far as they do not depend on the text around it."""
    yield from _levels(secret)  # what the escapes of a text may be resolved to
    body = secret.encode()
    yield body.hex()
    for before in range(3):  # bytes before it in the group of three that base64 encodes together
        encoded = base64.b64encode(bytes(before) + body).decode()
        letters = encoded[-(-8 * before // 6) : 8 * (before + len(body)) // 6]
        yield letters
        yield letters.replace("+", "-").replace("/", "_")


def _levels(text: str) -> Iterator[str]:
    """A text, and what it becomes as its escapes are resolved again and again."""
    for _ in range(LEVELS):
        yield text
        unescaped = html.unescape(unquote(_BACKSLASHED.sub(_character, text)))
        if unescaped == text:
            break
        text = unescaped


def _character(match: re.Match) -> str:
    if match["octal"]:
        return chr(int(match["octal"], 8))
    return match["itself"] or chr(int(match[1] or match[2] or match[3], 16))
