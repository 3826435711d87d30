"""The HTTP client of the ``openai`` package, bounded in what it takes from a server.

Needs ``openai[aiohttp]``.
"""

from __future__ import annotations

import contextlib
from typing import Any

import openai

from .body import MAX_ANSWER_BYTES


class BoundedClient(openai.DefaultAioHttpClient):
    """The package's fastest client; it reads no more than a little above the limit.

    Only plain and gzipped bodies are asked for, and others are not unpacked.
    """

    async def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
        try:
            response = await super().send(request, stream=True, **options)
            try:
                encoding = response.headers.get("content-encoding", "identity").lower()
                if encoding not in ("identity", "gzip", ""):
                    raise ValueError(f"the answer's encoding is {encoding}")
                body = bytearray()
                async with contextlib.aclosing(response.aiter_bytes()) as parts:
                    async for part in parts:
                        body += part
                        if len(body) > MAX_ANSWER_BYTES:
                            break
            finally:
                await response.aclose()
        except Exception as error:  # three packages have their own errors for broken HTTP
            raise openai.APIConnectionError(request=request) from error
        # The headers that say how to read the body (packing, characters) have been obeyed.
        headers = {
            name: response.headers[name]
            for name in ("retry-after", "location")
            if name in response.headers
        }
        return type(response)(
            response.status_code, headers=headers, content=bytes(body), request=request
        )
