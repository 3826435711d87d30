"""What goes wrong with a server: one request, all of them, or the server before the first."""

from __future__ import annotations

from ..terminal import printable


class ItemError(Exception):
    """This answer is lost; others may arrive. The reason is one printable line."""

    def __init__(self, reason: object) -> None:
        super().__init__(printable(reason))


class ServerError(Exception):
    """No answer will arrive: a wrong key, an unknown model, a server that stays dead."""


class UnusableServerError(Exception):
    """No request can be sent: a package is missing, or the key or the address is unusable."""
