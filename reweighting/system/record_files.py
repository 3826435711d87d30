"""Files of records: JSON arrays and JSON Lines, told apart by content and read piece by piece.

A file of records may be larger than the memory. It is cut into pieces of whole records by one
process, and the pieces may be parsed by others.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .files import (
    BrokenLine,
    FileError,
    named,
    opened_text,
    parse_lines,
    python_limits,
    read_json,
    read_json_lines,
    refuse_pipes,
)

PIECE = 4 * 2**20  # characters of an array, or bytes of lines, in a piece
_CUT = 16  # characters before the end of a text that may mean something else with more text
_WHOLE = 2**28  # bytes of a file that may be read whole to explain what is wrong with it
_SPACE = re.compile(r"[ \t\r\n]*")  # white space in JSON
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Piece:
    """Successive records of a file, as text.

    Args:
        content: items of an array with commas between them, or whole lines.
        first: the number of the first record, from 1.
        line: the number of the first line, from 1, where the content is lines.
        end: bytes of the file that were read when this piece was cut, to show progress.
    """

    path: str
    content: str | bytes
    first: int
    end: int
    line: int = 1

    def records(self) -> Iterator[Any]:
        """The records; :func:`~.files.check_json` is left to a caller who can name the field.

        Raises:
            BrokenLine: a line cannot be read.
        """
        if isinstance(self.content, bytes):
            for _, _, value in parse_lines(self.path, io.BytesIO(self.content), self.line, False):
                yield value
            return
        position, end = 0, len(self.content)
        while position < end:
            with python_limits():
                value, position = _DECODER.raw_decode(self.content, position)
            yield value
            position = _end_of_space(self.content, position) + 1  # the comma
            position = _end_of_space(self.content, position)


def read_records(path: str | Path) -> list[Any]:
    """The items of a JSON array or the values of JSON Lines, told apart by the first character.

    The caller, who can name record and field, calls :func:`~.files.check_json`.

    Raises:
        FileError: the file cannot be read or is neither.
    """
    return [record for piece in record_pieces(path) for record in piece.records()]


def record_pieces(path: str | Path, size: int = PIECE) -> Iterator[Piece]:
    """Cut a file of records into pieces of about ``size`` characters.

    Raises:
        FileError: the file cannot be read, is neither a JSON array nor JSON Lines, or is an array
            with a broken item. A broken line is found when its piece is parsed.
    """
    path = Path(path)
    if _opens_an_array(path):
        yield from _array_pieces(path, size)
    else:
        _refuse_other_json(path)
        yield from _line_pieces(path, size)


def hash_file(path: str | Path, *digests: hashlib._Hash) -> None:
    """Update ``digests`` with the bytes of a file.

    Raises:
        FileError: it cannot be read.
    """
    path = Path(path)
    with named(path):
        refuse_pipes(path)
        with path.open("rb") as file:
            while block := file.read(2**20):
                for digest in digests:
                    digest.update(block)


def _opens_an_array(path: Path) -> bool:
    with named(path):
        refuse_pipes(path)
        with path.open("rb") as file:
            for line in file:
                if start := line.removeprefix(codecs.BOM_UTF8).lstrip():
                    return start.startswith(b"[")
    return False


def _refuse_other_json(path: Path) -> None:
    """Refuse a file that holds a single value, over many lines or no object.

    Raises:
        FileError: it does.
    """
    values = read_json_lines(path, checked=False)
    try:
        _, _, first = next(values, (0, b"", {}))
    except BrokenLine as error:
        if path.stat().st_size <= _WHOLE and _is_json(path):
            raise FileError(f"{path}: not a list of records") from error
        return  # a broken line like others
    try:
        alone = next(values, None) is None
    except BrokenLine:
        alone = False
    if alone and not isinstance(first, dict):
        raise FileError(f"{path}: not a list of records")


def _is_json(path: Path) -> bool:
    try:
        read_json(path)
    except FileError:
        return False
    return True


def _line_pieces(path: Path, size: int) -> Iterator[Piece]:
    first = line = 1
    with named(path), path.open("rb") as file:
        while lines := file.readlines(size):
            if line == 1:
                lines[0] = lines[0].removeprefix(codecs.BOM_UTF8)
            yield Piece(str(path), b"".join(lines), first, file.tell(), line)
            line += len(lines)
            first += sum(map(bool, map(bytes.strip, lines)))


def _array_pieces(path: Path, size: int) -> Iterator[Piece]:
    """The items of an array are decoded one by one, so that an error can name the broken one."""
    done, first = 0, 1  # items that were decoded; number of the first one of the piece
    with opened_text(path) as file:
        window = _Window(file, size)
        try:
            window.position = window.text.index("[") + 1
            character, start = window.character(), window.position
            while done or character != "]":
                window.skip_value()
                done += 1
                end, character = window.position, window.character()
                if character == "]":
                    break
                if character != ",":
                    raise window.error("Expecting ',' delimiter", window.position)
                window.position += 1
                window.character()
                if window.position - start >= size:
                    yield Piece(str(path), window.text[start:end], first, window.bytes_read())
                    window.forget()
                    start, first = 0, done + 1
            rest = window.text[start : window.position]
            window.position += 1
            if window.character():
                raise window.error("Extra data", window.position)
        except ValueError as error:
            if isinstance(error, UnicodeDecodeError):
                raise
            raise FileError(f"{path}: record {done + 1}: not JSON: {error}") from error
        if done >= first:
            yield Piece(str(path), rest, first, window.bytes_read())


class _Window:
    """The part of a JSON text that is in memory, with a position that moves forward in it."""

    def __init__(self, file: io.TextIOWrapper, size: int) -> None:
        self.file = file
        self.size = size
        self.text = ""
        self.position = 0
        self.ended = False  # whether the text ends with the file
        self._characters = self._lines = self._column = 0  # before the window
        while "[" not in self.text:
            self._read_on()

    def bytes_read(self) -> int:
        """The bytes of the file that have been read."""
        return os.lseek(self.file.fileno(), 0, os.SEEK_CUR)

    def _read_on(self) -> None:
        """Make the window longer; by its length, so that a long value takes linear time."""
        more = self.file.read(max(self.size, len(self.text)))
        self.ended = not more
        self.text += more

    def forget(self) -> None:
        """Drop what lies before the position."""
        gone = self.text[: self.position]
        self._characters += len(gone)
        self._lines += gone.count("\n")
        newline = gone.rfind("\n")
        self._column = len(gone) - newline - 1 if newline >= 0 else self._column + len(gone)
        self.text, self.position = self.text[self.position :], 0

    def character(self) -> str:
        """Move to the next character that is no white space; "" at the end of the file."""
        while True:
            self.position = _end_of_space(self.text, self.position)
            if self.position < len(self.text):
                return self.text[self.position]
            if self.ended:
                return ""
            self._read_on()

    def skip_value(self) -> None:
        """Move behind the value that starts here.

        Raises:
            ValueError: it is no JSON.
        """
        while True:
            try:
                with python_limits():
                    _, end = _DECODER.raw_decode(self.text, self.position)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos > len(self.text) - _CUT
                if self.ended or not cut:
                    raise self.error(error.msg, error.pos) from None
            else:
                if self.ended or end <= len(self.text) - _CUT:  # else digits may follow
                    self.position = end
                    return
            self._read_on()

    def error(self, message: str, position: int) -> ValueError:
        """An error like those of :mod:`json`, with its place in the file."""
        lines = self.text.count("\n", 0, position)
        newline = self.text.rfind("\n", 0, position)
        column = position - newline if newline >= 0 else self._column + position + 1
        place = f"line {self._lines + lines + 1} column {column}"
        return ValueError(f"{message}: {place} (char {self._characters + position})")


def _end_of_space(text: str, start: int) -> int:
    return _SPACE.match(text, start).end()
