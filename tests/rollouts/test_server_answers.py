"""Answers of faulty or lying servers: each a rollout or a reason of one line, without the key."""

from __future__ import annotations

import asyncio
import copy
import gc
import gzip
import importlib.util
import json
import os
import random
import time
import tracemalloc
import zlib
from collections.abc import Iterable, Iterator
from urllib.parse import quote

import pytest

from reweighting.rollouts.openai_server import Server
from reweighting.rollouts.reasoner import Query, Rollout
from reweighting.rollouts.sampler import Sampler
from reweighting.system.journal import Journal
from reweighting.system.server.body import MAX_ANSWER_BYTES, MAX_TOKENS, number_of_tokens
from reweighting.system.server.endpoint import retry_after
from reweighting.system.server.errors import ItemError, ServerError
from reweighting.system.server.scrubbing import INSTEAD
from tests.rollouts.commands import chains, write_questions
from tests.rollouts.server import GOOD, IMAGE, KEY, TEXT, ask, changed, hides, said
from tests.support.model_server import last_response as response
from tests.support.model_server import raw_server

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("openai") is None, reason="the openai package is not installed"
)
PIECE = b" " * 2**16


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


# ---- what can be read is kept


def test_a_wrong_usage_counts_as_unknown_and_is_noted():
    usages = [b"1e999", b"-5", b"1" + b"0" * 24, b"NaN", b"true", b'"7"', b"[]", b"1.5"]
    body = json.dumps({**GOOD, "usage": {"prompt_tokens": 3, "completion_tokens": 4}}).encode()
    server, found = said(*(body.replace(b": 4", b": " + usage) for usage in usages), body)
    assert [(r.text, r.tokens_in) for r in found] == [(TEXT, 3)] * 9
    assert [r.tokens_out for r in found] == [0] * 8 + [4]
    [(note, count)] = server.notes.items()
    assert count == 8 and "how many tokens" in note
    server, found = said(*({**GOOD, "usage": usage} for usage in (None, 7, [], {}, "much")))
    assert [r.text for r in found] == [TEXT] * 5 and server.notes[note] == 5
    assert number_of_tokens(MAX_TOKENS) == MAX_TOKENS and number_of_tokens(MAX_TOKENS + 1) is None
    assert number_of_tokens(12.0) == 12


def test_halves_of_surrogate_pairs_and_broken_utf8_cost_their_characters_only(tmp_path):
    def with_text(text: bytes) -> bytes:
        return json.dumps(changed(content="TEXT")).encode().replace(b"TEXT", text)

    texts = [b"\\ud83d", b"\\ude00\\ud83d", b"\\ud83d\\ude00", b"\\\\ud83d", b"\\ud83d\\\\ude00"]
    texts += [b"\xff\xfe", b"caf\xc3", "é\u2028\u0085".encode()]
    server, found = said(*map(with_text, texts))
    half = "\ufffd"
    wanted = [half, half + half, "\U0001f600", "\\ud83d", half + "\\ude00"]
    assert [r.text for r in found] == [*wanted, half + half, "caf" + half, "é\u2028\u0085"]
    assert next(iter(server.notes.values())) == 5
    journal = Journal(tmp_path / "journal.jsonl")
    for number, rollout in enumerate(found):
        journal.append(str(number), vars(rollout))
    journal.close()
    journal = Journal(tmp_path / "journal.jsonl")
    assert [journal.get(str(n))["text"] for n in range(8)] == [r.text for r in found]
    journal.close()


def test_a_rollout_with_half_a_pair_is_kept_by_a_whole_run(tmp_path, capsys):
    write_questions(tmp_path, 2)
    body = json.dumps(changed(content=TEXT + "!")).encode().replace(b"!", b"\\ud83d")
    with raw_server(lambda headers, _: [response(body)]) as url:
        assert chains(tmp_path, url, tmp_path / "c.json") == 0
    assert "warning: 8 answers held broken characters" in capsys.readouterr().err
    assert json.loads((tmp_path / "c.json").read_text())[0]["candidates"] == [TEXT + "\ufffd"] * 4


def test_forms_of_content():
    parts = [{"type": "thinking", "text": "hm"}, {"type": "text", "text": "a"}, {"text": "b"}, 7]
    two = {**GOOD, "choices": [*GOOD["choices"], *changed(content="second")["choices"]]}
    endless = copy.deepcopy(GOOD)
    del endless["choices"][0]["finish_reason"]
    odd = copy.deepcopy(GOOD)
    odd["choices"][0]["finish_reason"] = {"no": "text"}
    thinking = changed(content=None, reasoning_content="so much to think about")
    _, found = said(changed(content=parts), thinking, two, endless, odd, b"\xef\xbb\xbf" + body())
    assert [r.text for r in found] == ["ab", "", TEXT, TEXT, TEXT, TEXT]
    assert [r.finish_reason for r in found] == ["stop"] * 6
    _, found = said(
        changed(content=7), changed(refusal={"why": "\x1b[31m"}), {"choices": {}}, b"[]"
    )
    assert [str(error) for error in found] == [
        "the answer's content is not text",
        "refused: {'why': '\\x1b[31m'}",
        "the answer holds no completion",
        "the answer holds no completion",
    ]
    _, [error] = said({"error": {"message": "no GPU is free", "code": 502}})
    assert str(error) == "the answer is an error: no GPU is free"


def test_the_words_of_an_error_are_shown_in_whatever_form_they_come():
    deep = b"[" * 100_000 + b"]" * 100_000
    bodies = [b'{"error": {"message": "no"}}', b'{"message": "no"}', b'{"detail": "no"}', b"no"]
    bodies += [b'{"error": "no"}', b'{"detail": [{"msg": "no"}]}', b"\xff", b"", deep]
    _, found = said(*bodies, status="422")
    wanted = ["no"] * 5 + ['{"detail": [{"msg": "no"}]}', "\ufffd", "", "[" * 142 + "..."]
    assert [str(error) for error in found] == [f"refused: 422: {text}".strip() for text in wanted]


def body() -> bytes:
    return json.dumps(GOOD).encode()


def test_what_is_no_json_is_said_so():
    deep = b'{"choices": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    _, found = said(
        deep, b'{"n": ' + b"1" * 5000 + b"}", b"", b"\x00", body().decode().encode("utf-16")
    )
    assert all(isinstance(error, ItemError) for error in found)
    assert "not JSON: nested deeper than 100 levels" in str(found[0])
    assert "not JSON: holds a number of more than 300 digits" in str(found[1])
    assert all("not JSON" in str(error) for error in found)


# ---- limits on what is read


def ask_measured(pieces: Iterable[bytes]) -> tuple[Exception, int, int]:
    """The error for an answer, the bytes of it that were taken, and the peak of memory."""
    taken = 0

    def reply(headers, _) -> Iterator[bytes]:
        nonlocal taken
        for piece in pieces:
            yield piece
            taken += len(piece)

    with raw_server(reply) as url:
        ask(url)  # so that what is loaded once does not count
        taken = 0
        tracemalloc.start()
        try:
            _, [found] = ask(url)
            return found, taken, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()


class Pieces:
    """A body that can be iterated any number of times."""

    def __init__(self, head: bytes, pieces: int, piece: bytes) -> None:
        self.head, self.pieces, self.piece = head, pieces, piece

    def __iter__(self) -> Iterator[bytes]:
        yield self.head
        for _ in range(self.pieces):
            yield self.piece


@pytest.mark.parametrize("status", ["200", "400"])
@pytest.mark.parametrize("form", ["length", "chunked", "until the end"])
def test_an_endless_body_is_cut_off(status, form):
    head, piece = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n".encode(), PIECE
    if form == "length":
        head += b"Content-Length: 1073741824\r\n"
    if form == "chunked":
        head += b"Transfer-Encoding: chunked\r\n"
        piece = b"10000\r\n" + PIECE + b"\r\n"
    found, taken, peak = ask_measured(Pieces(head + b"\r\n", 2**14, piece))
    assert isinstance(found, ItemError)
    if status == "200":
        assert str(found) == f"the answer is longer than {MAX_ANSWER_BYTES / 2**20:g} MiB"
    assert taken < 4 * MAX_ANSWER_BYTES and peak < 6 * MAX_ANSWER_BYTES


def test_a_packed_body_is_bounded_unpacked():
    packer = zlib.compressobj(9, wbits=31)
    bomb = packer.compress(bytes(2**26)) + b"".join(packer.compress(bytes(2**26)) for _ in range(3))
    bomb += packer.flush()
    head = f"HTTP/1.1 200 X\r\nContent-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n\r\n"
    found, _, peak = ask_measured([head.encode() + bomb])
    assert "longer than" in str(found) and peak < 60 * 2**20
    packed = gzip.compress(body())
    with raw_server(lambda *_: [response(packed, more=b"Content-Encoding: gzip\r\n")]) as url:
        _, [rollout] = ask(url)
    assert rollout.text == TEXT
    nested = gzip.compress(gzip.compress(bytes(2**20)))
    for encoding in (b"gzip, gzip", b"br", b"zstd"):
        more = b"Content-Encoding: " + encoding + b"\r\n"
        with raw_server(lambda *_, more=more: [response(nested, more=more)]) as url:
            _, [error] = ask(url)
        assert f"the answer's encoding is {encoding.decode()}" in str(error)


def test_what_is_lost_is_not_kept_in_memory(tmp_path):
    huge = response(b"x" * 2**22, "400")

    async def run(url: str) -> None:
        server = Server("rule", "Think.", url, max_retries=0)
        sampler = Sampler(server, journal, 1)
        lost = await sampler.rollouts(Query("[50]", IMAGE), range(8))
        await server.close()
        assert len(sampler.lost) == 8 and all(isinstance(one, ItemError) for one in lost)
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 2**22

    journal = Journal(tmp_path / "journal.jsonl")
    with raw_server(lambda *_: [huge]) as url:
        ask(url)
        tracemalloc.start()
        try:
            asyncio.run(run(url))
        finally:
            tracemalloc.stop()
    journal.close()


def test_a_trickle_ends_at_the_timeout():
    def reply(headers, _) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 X\r\nContent-Length: 1000\r\n\r\n"
        for _ in range(100):
            time.sleep(0.05)
            yield b" "

    with raw_server(reply) as url:
        start = time.monotonic()
        _, [error] = ask(url, timeout=0.5)
    assert str(error) == "no answer within 0.5 s" and time.monotonic() - start < 3


HEADS = {
    "a long header": b"HTTP/1.1 200 X\r\nA: " + b"a" * 2**20 + b"\r\n\r\n",
    "many headers": b"HTTP/1.1 200 X\r\n" + b"A: a\r\n" * 20_000 + b"\r\n",
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "nothing": b"",
    "no such status": b"HTTP/1.1 099 X\r\nContent-Length: 0\r\n\r\n",
    "a negative length": b"HTTP/1.1 200 X\r\nContent-Length: -1\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 X\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
    "a broken chunk": b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "no gzip": response(b"{}", more=b"Content-Encoding: gzip\r\n"),
    "no text encoding": response(b"{}", "400", b"Content-Type: text/plain; charset=zlib\r\n"),
    "a header of any bytes": response(b"{}", "400", b"X\xff: \x00\xfe\r\n"),
    "a pause without end": response(b"{}", "429", b"Retry-After: 1e999\r\n"),
    "a pause of no number": response(b"{}", "429", b"Retry-After: nan\r\n"),
}


@pytest.mark.parametrize("kind", HEADS)
def test_broken_http_is_a_reason(kind):
    with raw_server(lambda *_: [HEADS[kind]]) as url:
        _, [error] = ask(url)
    check(error)


def test_retry_after_outside_the_calendar_is_none():
    for value in ("Mon, 01 Jan 0001 00:00:00 +2359", "Mon, 01 Jan 0001 00:00:00 -0000", "1 2", "1"):
        assert isinstance(retry_after({"retry-after": value}), float)


# ---- where requests go, and who sees the key


def test_no_redirect_is_followed(tmp_path, capsys):
    asked = []
    write_questions(tmp_path, 1)

    def elsewhere(headers, body) -> list[bytes]:
        asked.append(body)
        return [response(json.dumps(GOOD).encode())]

    with raw_server(elsewhere) as other:
        for status in ("301", "302", "307", "308"):
            more = f"Location: {other}/chat/completions?key={quote(KEY)}\r\n".encode()
            with raw_server(lambda *_, s=status, m=more: [response(b"", s, m)]) as url:
                assert chains(tmp_path, url, tmp_path / "c.json") == 1
            said = capsys.readouterr().err
            assert f"127.0.0.1: redirects to {other}/chat/completions?key={INSTEAD}" in said
    assert not asked


# ---- random answers


HOSTILE = [
    *(None, True, -1, 10**24, 1e308, float("nan"), float("inf"), "", "x" * 10_000, [], {}),
    *(f"Bearer {KEY}", "\x1b[2J\x00\x9b", "\ud83d", "\u2028", [[[[]]]], {"text": 7}, [None] * 50),
]


def mutated(rng: random.Random) -> bytes:
    """An answer with something wrong in structure, bytes or HTTP."""
    tree = copy.deepcopy(GOOD)
    for _ in range(rng.randint(1, 3)):
        place, steps = tree, rng.randint(0, 3)
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            name = rng.choice(keys) if keys else None
            inner = place[name] if keys else None
            if not (steps and isinstance(inner, dict | list) and inner):
                break
            place, steps = inner, steps - 1
        if name is not None:
            if rng.random() < 0.2:
                del place[name]
            else:
                place[name] = copy.deepcopy(rng.choice(HOSTILE))
    text = bytearray(json.dumps(tree).encode())
    kind = rng.random()
    if kind < 0.4:
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(len(text))
            new = rng.choice([b"", bytes([rng.randrange(256)]), b"\\ud800", b"[" * 200, b"9" * 400])
            text[place : place + rng.randint(0, 3)] = new
    whole = bytearray(response(bytes(text), rng.choice(["200"] * 6 + ["400", "500", "307", "999"])))
    if kind > 0.8:
        place = rng.randrange(len(whole) if kind > 0.95 else 60)
        whole[place : place + rng.randint(0, 2)] = bytes([rng.randrange(256)])
    return bytes(whole)


def check(found: Rollout | ItemError | ServerError) -> None:
    """A rollout that can be stored, or a reason of one line that can be shown."""
    if isinstance(found, Rollout):
        json.dumps(vars(found), ensure_ascii=False).encode()
        assert 0 <= found.tokens_in <= MAX_TOKENS and 0 <= found.tokens_out <= MAX_TOKENS
        assert type(found.tokens_in) is type(found.tokens_out) is int
        assert len(found.finish_reason) <= 200 and hides(found.text)
    else:
        assert 0 < len(str(found)) <= 400 and str(found).isprintable() and hides(str(found))


def test_mutated_answers_end_in_a_rollout_or_a_reason(tmp_path):
    """More of them by hand: MUTATIONS=10000 python -m pytest tests/rollouts"""
    count = int(os.environ.get("MUTATIONS", 60))
    answers = [mutated(random.Random(seed)) for seed in range(count)]
    queue = iter(answers)
    journal = Journal(tmp_path / "journal.jsonl")
    rolled = 0
    tracemalloc.start()
    try:
        with raw_server(lambda *_: [next(queue)]) as url:
            for number, found in enumerate(ask(url, count, timeout=1.0)[1]):
                check(found)
                if isinstance(found, Rollout):
                    journal.append(str(number), vars(found))
                    rolled += 1
        assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
    finally:
        tracemalloc.stop()
    journal.close()
    assert len(Journal(tmp_path / "journal.jsonl")) == rolled
    assert 0.1 * count < rolled < 0.9 * count  # neither all nor none
