"""Finished rollouts on disk, one JSON line each, so that nothing is ever paid for twice.

A line is handed to the operating system in one write as soon as its rollout is there: a killed
process loses only what was in flight. (A power failure may cost the last seconds; syncing every
line would cost more than it saves.)
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any


class JournalError(Exception):
    """The journal cannot be used; says why."""


class Journal:
    """An append-only file of rollouts by key. Keeps places in memory, not texts.

    Args:
        path: made if it is not there. A last line torn by a kill is cut off.

    Raises:
        JournalError: another process writes it, or a line in its middle is broken.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise JournalError(f"{path} is in use by another run") from error
        except OSError as error:
            raise JournalError(f"{path}: {error.strerror or error}") from error
        self._places: dict[str, tuple[int, int]] = {}  # key -> offset and length of its line
        self._end = 0
        self.tokens_in = self.tokens_out = 0  # of all rollouts in the file
        with open(self._file, "rb", closefd=False) as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                try:
                    record = json.loads(line)
                    key, used = record["key"], (record["tokens_in"], record["tokens_out"])
                except (ValueError, TypeError, KeyError) as error:
                    raise JournalError(f"{path}: line {number} is broken") from error
                self._add(key, len(line), used)
        os.ftruncate(self._file, self._end)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: str) -> dict[str, Any]:
        """The record of a key.

        Raises:
            KeyError: there is none.
        """
        offset, length = self._places[key]
        return json.loads(os.pread(self._file, length, offset))

    def append(self, key: str, record: dict[str, Any]) -> None:
        """Write a record through to the operating system.

        Raises:
            JournalError: it could not be written, as on a full disk.
        """
        line = (json.dumps({"key": key, **record}, ensure_ascii=False) + "\n").encode()
        try:
            written = os.write(self._file, line)
        except OSError as error:
            raise JournalError(f"{self.path}: {error.strerror or error}") from error
        if written < len(line):  # the rest is cut off when the file is next opened
            raise JournalError(f"{self.path}: only {written} of {len(line)} bytes were written")
        self._add(key, len(line), (record["tokens_in"], record["tokens_out"]))

    def _add(self, key: str, length: int, used: tuple[int, int]) -> None:
        self._places[key] = (self._end, length)
        self._end += length
        self.tokens_in += used[0]
        self.tokens_out += used[1]

    def close(self) -> None:
        """Let another process have it."""
        os.close(self._file)
