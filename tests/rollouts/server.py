"""One request to a server that answers what a test wants, and what may not be seen of its key."""

from __future__ import annotations

import asyncio
import base64
import copy
import html
import json
from urllib.parse import quote

from reweighting.rollouts.openai_server import Server
from reweighting.rollouts.reasoner import Query, Rollout
from reweighting.system.server.errors import ItemError, ServerError
from reweighting.system.server.scrubbing import PART
from tests.conftest import REPOSITORY
from tests.support.model_server import ECHOED, answer, raw_server
from tests.support.model_server import last_response as response

IMAGE = str(REPOSITORY / "data" / "images" / "train" / "00000.png")
KEY = "sk-proj-Ab3/dE+fGh_iJkLmNoPqRsTuVwXyZ%41234567"
GOOD = answer(ECHOED)
TEXT = GOOD["choices"][0]["message"]["content"]


def ask(
    url: str, times: int = 1, **options
) -> tuple[Server, list[Rollout | ItemError | ServerError]]:
    """A server, and for every request its rollout or its error."""

    async def run() -> tuple[Server, list]:
        server = Server("rule", "Think.", url, **{"timeout": 5.0, "max_retries": 0} | options)
        found = []
        for seed in range(times):
            try:
                found += await server.sample(Query("[50]", IMAGE), [seed])
            except (ItemError, ServerError) as error:
                found.append(type(error)(str(error)))  # the one raised keeps request and answer
        await server.close()
        return server, found

    return asyncio.run(run())


def said(*answers: bytes | dict, status: str = "200", **options) -> tuple[Server, list]:
    """As :func:`ask`, of a server that gives these answers one after the other."""
    bodies = [body if isinstance(body, bytes) else json.dumps(body).encode() for body in answers]
    queue = iter(bodies)
    with raw_server(lambda headers, body: [response(next(queue), status)]) as url:
        return ask(url, len(bodies), **options)


def changed(**message) -> dict:
    """The good answer with another message."""
    other = copy.deepcopy(GOOD)
    other["choices"][0]["message"] = message
    return other


def escaped(text: str) -> str:
    return "".join(f"\\u{ord(character):04x}" for character in text)


ECHOES = {
    "as it is": KEY,
    "the header": f"Bearer {KEY}",
    "upper case": f"BEARER {KEY.upper()}",
    "URL": quote(KEY, safe=""),
    "URL, every character": "".join(f"%{ord(c):02X}" for c in KEY),
    "URL twice": quote(quote(KEY, safe=""), safe=""),
    "base64": base64.b64encode(f"Bearer {KEY}".encode()).decode(),
    "base64, other place": base64.urlsafe_b64encode(f"is Bearer {KEY}!".encode()).decode(),
    "base64 in lines": base64.encodebytes(f"Authorization: Bearer {KEY}".encode() * 2).decode(),
    "hexadecimal": KEY.encode().hex(),
    "JSON": escaped(KEY),
    "Python, wide": "".join(f"\\U{ord(character):08x}" for character in KEY),
    "Python, octal": "".join(f"\\{ord(character):o}" for character in KEY),
    "JSON in JSON": json.dumps(escaped(KEY)),
    "slashes": KEY.replace("/", "\\/"),
    "HTML": html.escape(KEY).replace("/", "&#x2F;"),
    "cut off": KEY[:-9],
    "the end": "..." + KEY[9:],
}


def hides(text: str) -> bool:
    """Whether a text shows no part of the key, nor its usual encodings."""
    forms = [KEY, base64.b64encode(KEY.encode()).decode(), KEY.encode().hex(), escaped(KEY)]
    forms += [quote(KEY, safe=""), base64.b64encode(b"." + KEY.encode()).decode()[2:]]
    forms += [base64.b64encode(b".." + KEY.encode()).decode()[3:]]
    text = text.lower()
    return not any(
        form[i : i + PART].lower() in text for form in forms for i in range(len(form) - PART - 3)
    )
