"""JSON with limits, whole files or none, one process a directory, text that a terminal may see."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc

import pytest

from reweighting.system import terminal
from reweighting.system.files import (
    MAX_DEPTH,
    MAX_DIGITS,
    BrokenLine,
    DirectoryLock,
    FileError,
    complete_lines,
    json_line,
    parse_json,
    read_json,
    read_json_lines,
    read_text,
    replacing,
    write_json,
    write_records,
    write_text,
)
from reweighting.system.record_files import PIECE, read_records, record_pieces
from reweighting.system.terminal import printable
from tests.conftest import REPOSITORY


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


@pytest.mark.parametrize(
    "text, expected",
    [
        ("{", "Expecting property name"),
        (nested(MAX_DEPTH + 1), f"nested deeper than {MAX_DEPTH} levels"),
        (nested(100_000), f"nested deeper than {MAX_DEPTH} levels"),
        ('{"a": ' * 101 + "1" + "}" * 101, f"nested deeper than {MAX_DEPTH} levels"),
        ("1" * (MAX_DIGITS + 1), f"a number of more than {MAX_DIGITS} digits"),
        ("-" + "1" * 5000, f"a number of more than {MAX_DIGITS} digits"),
        (r'"\ud83d"', r"holds half of a surrogate pair, \ud83d"),
        (r'{"\uDC00a": 1}', r"holds half of a surrogate pair, \udc00"),
    ],
)
def test_json_that_would_make_trouble_is_refused(text, expected):
    with pytest.raises(ValueError, match=expected.replace("\\", r"\\")):
        parse_json(text)


def test_json_at_the_limits_is_read():
    assert parse_json(nested(MAX_DEPTH)) == json.loads(nested(MAX_DEPTH))
    assert parse_json("9" * MAX_DIGITS) == 10**MAX_DIGITS - 1
    assert parse_json(rb'"\ud83d\ude00"') == "😀"
    wide = [{"a": [number]} for number in range(1000)]
    assert parse_json(json.dumps(wide)) == wide


@pytest.mark.parametrize(
    "content, expected",
    [
        (None, "No such file or directory"),
        (b"\xff", "not UTF-8 text"),
        (b"{", "not JSON"),
        ("folder", "not a file"),
        ("pipe", "not a file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, content, expected):
    path = tmp_path / "f.json"
    if content == "folder":
        path.mkdir()
    elif content == "pipe":
        os.mkfifo(path)
    elif content is not None:
        path.write_bytes(content)
    for read in (read_json, lambda path: list(read_json_lines(path)), read_records):
        with pytest.raises(FileError, match=expected) as error:
            read(path)
        assert str(path) in str(error.value)


def test_lines_end_with_a_line_feed_and_nothing_else(tmp_path):
    path = tmp_path / "f.jsonl"
    values = [{"a": "x\u2028y\u0085z\x0bw"}, {"b": 1}]
    path.write_text("\ufeff" + "".join(map(json_line, values)) + "\n \n" + json_line(7))
    assert [(number, value) for number, _, value in read_json_lines(path)] == [
        (1, values[0]),
        (2, values[1]),
        (5, 7),
    ]
    path.write_text("\ufeff\r\n" + "\r\n".join(json.dumps(value) for value in values))
    assert read_records(path) == values


@pytest.mark.parametrize("torn", [b'{"a": "\xc3', b'{"a": 1', b"{", b'"\\ud8'])
def test_what_a_kill_leaves_of_a_line_is_not_read(tmp_path, torn):
    path = tmp_path / "f.jsonl"
    assert complete_lines(path) == []
    path.write_bytes(json_line({"a": "é\u2028"}).encode() + torn)
    with pytest.raises(BrokenLine, match="line 2") as error:
        list(read_json_lines(path))
    assert error.value.torn
    assert complete_lines(path) == [{"a": "é\u2028"}]
    path.write_bytes(json_line(1).encode() + torn + b"\n" + json_line(2).encode())
    with pytest.raises(BrokenLine) as error:
        list(read_json_lines(path))
    assert not error.value.torn
    path.write_bytes(b"1\n2")  # whole by itself, but more digits may have been on their way
    assert complete_lines(path) == [1]


def in_pieces(path, size: int = PIECE) -> list:
    return [record for piece in record_pieces(path, size) for record in piece.records()]


ARRAYS = [
    *("[]", "[1]", ' [1, "a]" ,\n[2], {"b": [3]}]\n', "\ufeff\n[1]", "[ 123456789 , 2 ]"),
    '[{"a": "é\\u00e9\\\\\\"]"}, true,\r\n-1.25e-7, null ,"' + 90 * "x" + '"\n]\r\n ',
]


@pytest.mark.parametrize("text", ARRAYS)
def test_an_array_is_read_as_json_reads_it(tmp_path, text):
    path = tmp_path / "f.json"
    path.write_bytes(text.encode())
    for size in (PIECE, *range(1, 50)):
        assert in_pieces(path, size) == json.loads(text.removeprefix("\ufeff"))


def test_lines_are_read_in_pieces(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_bytes(b"\xef\xbb\xbf{}\r\n\n[2]\n \n" + json_line("é" * 40).encode() + b"4")
    for size in (PIECE, *range(1, 60)):
        assert in_pieces(path, size) == [{}, [2], "é" * 40, 4]
    *_, last = record_pieces(path, 1)
    assert (last.content, last.first, last.line) == (b"4", 4, 6)
    assert last.end == path.stat().st_size


def test_a_file_is_not_held_in_memory(tmp_path):
    path = tmp_path / "f.json"
    write_records(path, ({"a": "x" * 1000, "b": number} for number in range(20_000)))
    tracemalloc.start()
    try:
        numbers = [record["b"] for p in record_pieces(path, 2**16) for record in p.records()]
        assert tracemalloc.get_traced_memory()[1] < 4e6  # the file has 20 MB
    finally:
        tracemalloc.stop()
    assert numbers == list(range(20_000))


@pytest.mark.parametrize(
    "text, expected",
    [
        ("[", "record 1: not JSON: Expecting value: line 1 column 2"),
        ("[1,]", "record 2: not JSON: Expecting value"),
        ("[1\n2]", "record 2: not JSON: Expecting ',' delimiter: line 2 column 1"),
        ("[1, 2", "record 3: not JSON: Expecting ',' delimiter"),
        ("[1] 2", "record 2: not JSON: Extra data"),
        (f"[1, {'1' * 5000}]", f"record 2: not JSON: holds a number of more than {MAX_DIGITS}"),
        (f"[{nested(100_000)}]", f"record 1: not JSON: nested deeper than {MAX_DEPTH} levels"),
        ('{"a": 1}\n{"a": ', "line 2: not JSON"),
        ('{\n"a": 1\n}', "not a list of records"),
        ('"text"', "not a list of records"),
    ],
)
def test_a_broken_list_of_records_says_where(tmp_path, text, expected):
    path = tmp_path / "f.json"
    path.write_text(text)
    with pytest.raises(FileError) as error:
        read_records(path)
    assert f"{path}: {expected}" in str(error.value)
    for size in range(1, 20):
        with pytest.raises(FileError) as again:
            in_pieces(path, size)
        assert str(again.value) == str(error.value)


def test_a_file_is_written_whole_or_stays_as_it_was(tmp_path):
    path = tmp_path / "folder" / "f.json"
    write_json(path, {"ä": [1]})
    assert path.read_bytes() == '{\n  "ä": [\n    1\n  ]\n}\n'.encode()
    with pytest.raises(RuntimeError), replacing(path) as file:
        file.write("half")
        raise RuntimeError
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud83d")
    assert read_json(path) == {"ä": [1]}
    assert list(path.parent.iterdir()) == [path]
    with replacing(path, "wb") as file:
        file.write(b"\x00")
    assert path.read_bytes() == b"\x00"
    for records in ([], [{"a": 1}], [{"a": "\u2028"}, {"b": 2}]):
        write_records(path, records)
        assert read_json(path) == records == read_records(path)
        assert read_text(path).count("\n") == max(1, len(records) + 2 * bool(records))


def test_an_error_of_the_system_names_the_file(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "f.json", tmp_path / ("x" * 300)):
        with pytest.raises(FileError, match=str(path)[:60]):
            write_json(path, 1)


def test_a_directory_has_one_owner_at_a_time(tmp_path):
    run = tmp_path / "run"
    with DirectoryLock(run), pytest.raises(FileError, match="run is in use by another process"):
        DirectoryLock(run)
    DirectoryLock(run).release()


def test_a_killed_owner_lets_go(tmp_path):
    code = (
        "import sys, time; from reweighting.system.files import DirectoryLock\n"
        "lock = DirectoryLock(sys.argv[1]); print('has it', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout.readline() == "has it\n"
        with pytest.raises(FileError, match="in use"):
            DirectoryLock(tmp_path)
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        DirectoryLock(tmp_path).release()


@pytest.mark.parametrize(
    "text, expected",
    [
        ("plain — é 日本 😀", "plain — é 日本 😀"),
        ("a\n b\t\u2028c", "a b c"),
        ("\x1b[31mred\x9b1m\x07", r"\x1b[31mred\x9b1m\x07"),
        ("half \ud83d", r"half \ud83d"),
        ("turned \u202eback", r"turned \u202eback"),
        (17, "17"),
        ("x" * 201, "x" * 197 + "..."),
        ("\x00" * 60, r"\x00" * 49 + r"\..."),
    ],
)
def test_printed_text_is_one_harmless_line(text, expected):
    assert printable(text) == expected


def test_a_gigantic_text_is_cut_before_it_is_cleaned():
    before = time.process_time()
    assert printable("\x1b" * 50_000_000, 40).endswith("...")
    assert time.process_time() - before < 1


def test_errors_and_warnings_go_to_standard_error(capsys):
    terminal.error("one\n\x1b[2Jtwo")
    terminal.warning("three")
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err == "error: one\n\\x1b[2Jtwo\nwarning: three\n"
