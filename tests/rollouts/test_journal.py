"""The journal and the outputs after kills, on full disks, and with lines of others."""

from __future__ import annotations

import json
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from reweighting.rollouts import __main__ as rollouts
from reweighting.system.files import FileError
from reweighting.system.journal import Journal
from tests.rollouts.commands import chains, needs_openai, write_questions
from tests.support.model_server import ECHOED, answer, last_response, raw_server

GOOD = json.dumps(answer(ECHOED)).encode()


def test_journal_survives_a_torn_line(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    for key in "ab":
        journal.append(key, {"text": key * 3, "tokens_in": 5, "tokens_out": 2})
    journal.close()
    whole = path.read_bytes()
    for cut in (1, 10, 30):
        path.write_bytes(whole[:-cut])
        journal = Journal(path)
        assert len(journal) == 1 and "b" not in journal and journal.tokens_in == 5
        journal.append("b", {"text": "bbb", "tokens_in": 5, "tokens_out": 2})
        assert journal.get("a")["text"] == "aaa" and journal.get("b")["text"] == "bbb"
        journal.close()
        assert path.read_bytes() == whole


def test_journal_refuses_a_broken_middle_and_a_second_writer(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text('{"key": "a", "tokens_in": 1, "tokens_out": 1}\nrubbish\n')
    with pytest.raises(FileError, match="line 2: not JSON"):
        Journal(path)
    path.unlink()
    first = Journal(path)
    with pytest.raises(FileError, match=r"journal\.jsonl is in use by another process"):
        Journal(path)
    first.close()
    Journal(path).close()


def test_a_journal_torn_inside_a_character_loses_that_rollout_only(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    for key in "ab":
        journal.append(key, {"text": f"\u2028\u0085 ü {key}", "tokens_in": 1, "tokens_out": 1})
    journal.close()
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rindex(b"\xbc")])  # the second byte of ü
    journal = Journal(path)
    assert len(journal) == 1 and journal.get("a")["text"] == "\u2028\u0085 ü a"
    journal.append("b", {"text": "\u2028\u0085 ü b", "tokens_in": 1, "tokens_out": 1})
    journal.close()
    assert path.read_bytes() == whole


@needs_openai
@pytest.mark.parametrize("line", [b"[]", b'{"key": [], "tokens_in": 1, "tokens_out": 1}', b""])
def test_a_foreign_line_in_a_journal_is_named(tmp_path, capsys, line):
    write_questions(tmp_path, 1)
    (tmp_path / "c.journal.jsonl").write_bytes(
        b'{"key": "a", "tokens_in": 1, "tokens_out": 1}\n' + line + b'\n{"key": "b"}\n'
    )
    assert chains(tmp_path, "http://a/v1", tmp_path / "c.json") == 2
    assert "c.journal.jsonl: line 2 is " in capsys.readouterr().err


@needs_openai
def test_an_output_that_cannot_be_written_is_one_line_and_costs_nothing(tmp_path, capsys):
    write_questions(tmp_path, 2)
    output, journal = tmp_path / "c.json", tmp_path / "j.jsonl"
    with raw_server(lambda *_: [last_response(GOOD)]) as url:
        output.mkdir()
        assert chains(tmp_path, url, output, "--journal", str(journal)) == 2
        lines = capsys.readouterr().err.splitlines()
        assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
        assert str(output) in lines[-1]
    assert len(journal.read_bytes().splitlines()) == 8
    output.rmdir()
    assert chains(tmp_path, url, output, "--journal", str(journal)) == 0  # the server is gone
    assert len(json.loads(output.read_text())) == 2


@contextmanager
def files_no_longer_than(size: int) -> Iterator[None]:
    """As if the disk were full for every file of this process that grows beyond ``size``."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@needs_openai
def test_a_full_disk_ends_a_run_with_one_line_and_costs_nothing(tmp_path, capsys):
    path = write_questions(tmp_path, 1)
    record = json.loads(path.read_text()) | {"note": "x" * 100_000}  # kept in the output
    path.write_text(json.dumps(record))
    with raw_server(lambda *_: [last_response(GOOD)]) as url:
        with files_no_longer_than(50_000):
            assert chains(tmp_path, url, tmp_path / "c.json") == 2
        assert "c.json" in capsys.readouterr().err.splitlines()[-1]
    assert [p.name for p in tmp_path.glob("c.*")] == ["c.journal.jsonl"]
    assert chains(tmp_path, url, tmp_path / "c.json") == 0  # the server is gone


def test_what_a_full_disk_took_of_a_journal_line_is_cut_off_at_once(tmp_path):
    path, record = tmp_path / "journal.jsonl", {"text": "x" * 50, "tokens_in": 1, "tokens_out": 1}
    journal = Journal(path)
    journal.append("a", record)
    with files_no_longer_than(150), pytest.raises(FileError, match="bytes were written"):
        journal.append("b", record)
    journal.append("c", record)  # there is room again
    journal.close()
    journal = Journal(path)
    assert [key in journal for key in "abc"] == [True, False, True]
    assert journal.get("c")["text"] == "x" * 50
    journal.close()


@needs_openai
def test_a_label_needs_nothing_but_the_journal_twice(tmp_path):
    """What one run loses, the next run samples."""
    write_questions(tmp_path, 2)
    fail = iter([True, False] * 50)

    def reply(*_) -> list[bytes]:
        return [last_response(b"[]" if next(fail) else GOOD)]

    with raw_server(reply) as url:
        more = ("--max_retries", "0", "--concurrency", "1")
        assert chains(tmp_path, url, tmp_path / "c.json", *more) == 0
        assert (tmp_path / "c.lost.json").exists()
        for _ in range(6):
            assert chains(tmp_path, url, tmp_path / "c.json", *more) == 0
    assert not (tmp_path / "c.lost.json").exists()
    assert rollouts.main(["select", "--labelled", str(tmp_path / "none"), "--output", "x"]) == 2
