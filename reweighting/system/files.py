"""The one way to read JSON and JSON Lines, to write a file and to lock a directory."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import io
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

MAX_DEPTH = 100  # levels of nesting in a JSON value
MAX_DIGITS = 300  # of a number; floating point ends at 309
LOCK_FILE = ".lock"
_NOT_UTF8 = "not UTF-8 text; save the file as UTF-8"
_SPACE = re.compile(r"[ \t\r\n]*")  # white space in JSON
# An escaped surrogate or a long run of digits: values without them need not be walked through.
_SUSPICIOUS = re.compile(rf"\\u[dD][89a-fA-F]|[0-9]{{{MAX_DIGITS + 1}}}")


class FileError(Exception):
    """A file cannot be used; the message names it and says why."""


class BrokenLine(FileError):
    """A line of a JSON Lines file cannot be read.

    Args:
        torn: whether it is a last line without its end, as a killed writer leaves it.
    """

    def __init__(self, message: str, torn: bool) -> None:
        super().__init__(message)
        self.torn = torn


def parse_json(text: str | bytes, checked: bool = True) -> Any:
    """The value of a JSON text, with limits that the rest of the program relies on.

    Args:
        checked: whether to call :func:`check_json`; a caller that can name the place calls it.

    Raises:
        ValueError: it is no JSON, or :func:`check_json` refuses it.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    with _python_limits():
        value = json.loads(text)
    if checked and (_SUSPICIOUS.search(text) or text.count("[") + text.count("{") > MAX_DEPTH):
        check_json(value)
    return value


@contextlib.contextmanager
def _python_limits() -> Iterator[None]:
    """Turn the errors of Python's own limits, met while JSON is parsed, into plain ones."""
    try:
        yield
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels") from None
    except json.JSONDecodeError:
        raise
    except ValueError:  # the digits of an integer
        raise ValueError(f"holds a number of more than {MAX_DIGITS} digits") from None


def check_json(value: Any) -> None:
    """Make sure that a value can be processed and written again.

    Raises:
        ValueError: it is nested deeper than :data:`MAX_DEPTH`, holds a number of more than
            :data:`MAX_DIGITS` digits or half of a surrogate pair, which no UTF-8 file can hold.
    """
    level, depth = [value], 0
    while level:
        depth += 1
        deeper = []
        for item in level:
            if depth > MAX_DEPTH and isinstance(item, (dict, list)):
                raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
            if isinstance(item, dict):
                deeper += item.keys()
                deeper += item.values()
            elif isinstance(item, list):
                deeper += item
            elif isinstance(item, str):
                try:
                    item.encode()
                except UnicodeEncodeError as error:
                    half = f"\\u{ord(item[error.start]):04x}"
                    raise ValueError(f"holds half of a surrogate pair, {half}") from None
            elif isinstance(item, int) and abs(item) >= 10**MAX_DIGITS:
                raise ValueError(f"holds a number of more than {MAX_DIGITS} digits")
        level = deeper


def read_text(path: str | Path, seen: Callable[[bytes], object] | None = None) -> str:
    """The text of a UTF-8 file, without a byte order mark; lines end with a line feed.

    Args:
        seen: is called with the bytes of the file.

    Raises:
        FileError: it is missing, cannot be read or is not UTF-8.
    """
    path = Path(path)
    with _named(path):
        _refuse_pipes(path)
        content = path.read_bytes()
        if seen:
            seen(content)
        try:
            return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig").read()
        except UnicodeDecodeError as error:
            raise FileError(f"{path}: {_NOT_UTF8} ({error.reason})") from error


def read_json(path: str | Path) -> Any:
    """The value of a JSON file.

    Raises:
        FileError: it cannot be read or is not JSON.
    """
    text = read_text(path)
    try:
        return parse_json(text)
    except ValueError as error:
        raise FileError(f"{path}: not JSON: {error}") from error


def _refuse_pipes(path: Path) -> None:
    """Refuse pipes: opening one that nobody writes to waits for ever."""
    if path.exists() and not path.is_file():
        raise FileError(f"{path}: not a file")


def read_json_lines(
    path: str | Path,
    checked: bool = True,
    seen: Callable[[bytes], object] | None = None,
    broken: Callable[[BrokenLine], object] | None = None,
) -> Iterator[tuple[int, bytes, Any]]:
    """Number (from 1), bytes and value of every line of a JSON Lines file; blank lines are skipped.

    Lines end with a line feed and nothing else: U+2028 and U+0085 are text to JSON.

    Args:
        checked: as for :func:`parse_json`.
        seen: is called with the bytes of every line, blank ones included.
        broken: is called with the error of a line that cannot be read, which is then skipped.

    Raises:
        FileError: the file cannot be read.
        BrokenLine: a line cannot be read, and there is no ``broken``. The lines before it have been
            yielded.
    """
    path = Path(path)
    with _named(path):
        _refuse_pipes(path)
    with _named(path), path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if seen:
                seen(line)
            body = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if not body.strip():
                continue
            try:
                value = parse_json(body, checked)
            except ValueError as error:
                reason = f"not JSON: {error}"
                if isinstance(error, UnicodeDecodeError):
                    reason = f"{_NOT_UTF8} ({error.reason})"
                torn = not line.endswith(b"\n")
                problem = BrokenLine(f"{path}: line {number}: {reason}", torn)
                if broken is None:
                    raise problem from error
                broken(problem)
                continue
            yield number, line, value


def read_records(path: str | Path, seen: Callable[[bytes], object] | None = None) -> list[Any]:
    """The items of a JSON array or the values of JSON Lines, told apart by the first character.

    The caller, who can name record and field, calls :func:`check_json`.

    Args:
        seen: is called with the bytes of the file, piece by piece.

    Raises:
        FileError: the file cannot be read or is neither.
    """
    path = Path(path)
    if _opens_an_array(path):
        return _array_items(path, seen)
    records: list[Any] = []
    try:
        for _, _, value in read_json_lines(path, False, seen):
            records.append(value)
    except BrokenLine as error:
        if not records and _is_json(path):  # one value over many lines
            raise FileError(f"{path}: not a list of records") from error
        raise
    if len(records) == 1 and not isinstance(records[0], dict):
        raise FileError(f"{path}: not a list of records")
    return records


def _opens_an_array(path: Path) -> bool:
    with _named(path):
        _refuse_pipes(path)
        with path.open("rb") as file:
            for line in file:
                if start := line.removeprefix(codecs.BOM_UTF8).lstrip():
                    return start.startswith(b"[")
    return False


def _is_json(path: Path) -> bool:
    try:
        read_json(path)
    except FileError:
        return False
    return True


def _array_items(path: Path, seen: Callable[[bytes], object] | None) -> list[Any]:
    """The items of a JSON array, read one by one so that an error can name the broken one."""
    text = read_text(path, seen)
    decoder = json.JSONDecoder()
    items: list[Any] = []
    try:
        position = _end_of_space(text, text.index("[") + 1)
        while items or text[position : position + 1] != "]":
            with _python_limits():
                item, position = decoder.raw_decode(text, position)
            items.append(item)
            position = _end_of_space(text, position)
            if text[position : position + 1] == "]":
                break
            if text[position : position + 1] != ",":
                raise json.JSONDecodeError("Expecting ',' delimiter", text, position)
            position = _end_of_space(text, position + 1)
        position = _end_of_space(text, position + 1)
        if position < len(text):
            raise json.JSONDecodeError("Extra data", text, position)
    except ValueError as error:
        place = f"{path}: record {len(items) + 1}"
        raise FileError(f"{place}: not JSON: {error}") from error
    return items


def _end_of_space(text: str, start: int) -> int:
    return _SPACE.match(text, start).end()


def complete_lines(path: str | Path) -> list[Any]:
    """The values of a JSON Lines file of our own, up to the first broken line; [] without a file.

    A killed writer leaves its last line broken.

    Raises:
        FileError: the file exists but cannot be read.
    """
    values: list[Any] = []
    if not Path(path).exists():
        return values
    with contextlib.suppress(BrokenLine):
        for _, line, value in read_json_lines(path):
            if not line.endswith(b"\n"):
                break
            values.append(value)
    return values


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number, which true and false are not."""
    return isinstance(value, (int, float)) and type(value) is not bool and math.isfinite(value)


def json_line(value: Any) -> str:
    """One line of JSON Lines, with its line feed."""
    return json.dumps(value, ensure_ascii=False) + "\n"


@contextlib.contextmanager
def replacing(path: str | Path, mode: str = "w") -> Iterator[IO]:
    """A stream to write; its content becomes the file ``path`` when the block ends without error.

    Readers of ``path`` see the old file or the new one and never a part of it, even after a kill or
    a power failure.

    Raises:
        FileError: it cannot be written; the old file is as it was.
    """
    path = Path(path)
    aside = path.with_name(path.name + ".unfinished")
    encoding = None if "b" in mode else "utf-8"
    with _named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with aside.open(mode, encoding=encoding, newline=None if "b" in mode else "\n") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise


def write_text(path: str | Path, text: str) -> None:
    """Write a whole file; see :func:`replacing`."""
    with replacing(path) as file:
        file.write(text)


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as indented JSON; see :func:`replacing`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_records(path: str | Path, records: Iterable[dict], lines: bool = False) -> None:
    """Write records one by one, each on a line of its own; see :func:`replacing`.

    Args:
        records: may be made while they are written.
        lines: as JSON Lines and not as a JSON array.
    """
    before, between, after, empty = ("", "", "", "") if lines else ("[\n", ",\n", "\n]\n", "[]\n")
    with replacing(path) as file:
        number = 0
        for number, record in enumerate(records, start=1):
            text = json_line(record) if lines else json.dumps(record, ensure_ascii=False)
            file.write((between if number > 1 else before) + text)
        file.write(after if number else empty)


def remove(path: str | Path) -> None:
    """Delete a file if it exists.

    Raises:
        FileError: it cannot be deleted.
    """
    with _named(Path(path)):
        Path(path).unlink(missing_ok=True)


_locks: set[int] = set()  # open files of this process's locks


def _leave_locks_to_the_parent() -> None:
    """A forked child, such as a data worker, must not hold a lock that outlives its parent."""
    for file in _locks:
        os.close(file)
    _locks.clear()


os.register_at_fork(after_in_child=_leave_locks_to_the_parent)


class DirectoryLock:
    """Keeps other processes out of a directory until it is released or this process dies.

    Args:
        directory: is created if it does not exist.

    Raises:
        FileError: another process has locked the directory, or it cannot be written.
    """

    def __init__(self, directory: str | Path) -> None:
        path = Path(directory) / LOCK_FILE
        with _named(Path(directory)):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(self._file)
                raise FileError(f"{directory} is in use by another process") from error
        _locks.add(self._file)

    def release(self) -> None:
        """Give up the lock. The file stays: if it were deleted, two processes could lock it."""
        if self._file in _locks:
            _locks.remove(self._file)
            os.close(self._file)

    def __enter__(self) -> DirectoryLock:
        return self

    def __exit__(self, *error) -> None:
        self.release()


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn errors of the operating system into a :class:`FileError` that names the file."""
    try:
        yield
    except OSError as error:
        raise FileError(f"{error.filename or path}: {error.strerror or error}") from error


def unwritable(path: str) -> str | None:
    """Why a directory at ``path`` could not be created or written, or None."""
    present = os.path.abspath(path)
    while not os.path.lexists(present):
        present = os.path.dirname(present)
    if not os.path.isdir(present):
        return f"{present} is no directory"
    if not os.access(present, os.W_OK | os.X_OK):
        return f"no permission in {present}"
    return None
