"""The flags of every command that asks a server."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from ..terminal import real, whole


def add_request_flags(add: Callable[..., argparse.Action]) -> None:
    """Add the flags of :class:`~.endpoint.Endpoint`.

    Args:
        add: ``add_argument`` of a parser or of a group.
    """
    add("--concurrency", type=whole(1), default=16, help="requests at a time")
    add("--timeout", type=real(positive=True), default=300.0, help="seconds for an attempt")
    add("--max_retries", type=whole(0), default=8,
        help="of a request; 8 outlast an outage of a minute")  # fmt: skip
