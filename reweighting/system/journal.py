"""Finished answers on disk, one JSON line each, so that no answer is paid for twice.

A line is handed to the operating system in one write as soon as its answer has arrived: a killed
process loses only what was in flight. (A power failure may cost the last seconds; syncing every
line would cost more than it saves.)
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

from .files import BrokenLine, FileError, json_line, parse_json, read_json_lines


class Journal:
    """An append-only file of answers by key. Memory holds the places of the lines, not the texts.

    Args:
        path: created if it does not exist. A last line that a kill has torn is cut off.

    Raises:
        FileError: another process writes to the file, or a line before the last is broken.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise FileError(f"{path}: {error.strerror or error}") from error
        self._places: dict[str, tuple[int, int]] = {}  # key -> offset and length of its line
        self._end = 0
        self.tokens_in = self.tokens_out = 0  # of all answers in the file
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
            os.ftruncate(self._file, self._end)
        except (OSError, FileError) as error:
            self.close()
            if isinstance(error, FileError):
                raise
            if isinstance(error, BlockingIOError):
                raise FileError(f"{path} is in use by another process") from error
            raise FileError(f"{path}: {error.strerror or error}") from error

    def _read(self) -> None:
        """Note the places of all lines except a torn last one."""
        expected = 1
        try:
            for number, line, record in read_json_lines(self.path):
                if not line.endswith(b"\n"):  # JSON by chance, but torn all the same
                    break
                if number != expected:
                    raise FileError(f"{self.path}: line {expected} is blank")
                try:
                    key, used = record["key"], (record["tokens_in"], record["tokens_out"])
                except (TypeError, KeyError) as error:
                    raise FileError(f"{self.path}: line {number} is no finished answer") from error
                if not isinstance(key, str) or not all(isinstance(n, int) for n in used):
                    raise FileError(f"{self.path}: line {number} is no finished answer")
                self._add(key, len(line), used)
                expected += 1
        except BrokenLine as error:
            if not error.torn:
                raise

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: str) -> dict[str, Any]:
        """The record of a key.

        Raises:
            KeyError: the journal does not hold the key.
        """
        offset, length = self._places[key]
        return parse_json(os.pread(self._file, length, offset))

    def append(self, key: str, record: dict[str, Any]) -> None:
        """Append a record and hand it to the operating system.

        Raises:
            FileError: it could not be written, as on a full disk.
        """
        line = json_line({"key": key, **record}).encode()
        try:
            written = os.write(self._file, line)
            if written < len(line):  # the next line must not continue this one
                os.ftruncate(self._file, self._end)
        except OSError as error:
            raise FileError(f"{self.path}: {error.strerror or error}") from error
        if written < len(line):
            raise FileError(f"{self.path}: only {written} of {len(line)} bytes were written")
        self._add(key, len(line), (record["tokens_in"], record["tokens_out"]))

    def _add(self, key: str, length: int, used: tuple[int, int]) -> None:
        self._places[key] = (self._end, length)
        self._end += length
        self.tokens_in += used[0]
        self.tokens_out += used[1]

    def close(self) -> None:
        """Close the file, so that another process can use it."""
        os.close(self._file)
