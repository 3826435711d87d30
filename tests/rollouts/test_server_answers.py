"""Answers of faulty or lying servers: each a rollout or a reason of one line, without the key."""

from __future__ import annotations

import asyncio
import base64
import copy
import gc
import gzip
import html
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

from reweighting.rollouts.completion import MAX_ANSWER_BYTES, MAX_TOKENS, number_of_tokens
from reweighting.rollouts.journal import Journal
from reweighting.rollouts.openai_server import Server, retry_after
from reweighting.rollouts.reasoner import (
    ItemError,
    MissingReasonerError,
    Query,
    ReasonerError,
    Rollout,
)
from reweighting.rollouts.sampler import Sampler
from reweighting.rollouts.scrubbing import INSTEAD, PART, scrubber
from tests.conftest import REPOSITORY
from tests.rollouts.commands import chains, write_questions
from tests.support.model_server import ECHOED, answer, raw_server
from tests.support.model_server import last_response as response

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("openai") is None, reason="the openai package is not installed"
)
IMAGE = str(REPOSITORY / "data" / "images" / "train" / "00000.png")
KEY = "sk-proj-Ab3/dE+fGh_iJkLmNoPqRsTuVwXyZ%41234567"
GOOD = answer(ECHOED)
TEXT = GOOD["choices"][0]["message"]["content"]
PIECE = b" " * 2**16


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def ask(
    url: str, times: int = 1, **options
) -> tuple[Server, list[Rollout | ItemError | ReasonerError]]:
    """A server, and for every request its rollout or its error."""

    async def run() -> tuple[Server, list]:
        server = Server("rule", "Think.", url, **{"timeout": 5.0, "max_retries": 0} | options)
        found = []
        for seed in range(times):
            try:
                found += await server.sample(Query("[50]", IMAGE), [seed])
            except (ItemError, ReasonerError) as error:
                found.append(type(error)(str(error)))  # the one raised keeps request and answer
        await server.close()
        return server, found

    return asyncio.run(run())


def said(*answers: bytes | dict, status: str = "200", **options) -> tuple[Server, list]:
    """As :func:`ask`, of a server that gives these answers one after the other."""
    bodies = [body if isinstance(body, bytes) else json.dumps(body).encode() for body in answers]
    queue = iter(bodies)
    with raw_server(lambda headers, body: [response(next(queue), status)]) as url:
        return ask(url, len(bodies), **options)


def changed(**message) -> dict:
    """The good answer with another message."""
    other = copy.deepcopy(GOOD)
    other["choices"][0]["message"] = message
    return other


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


def escaped(text: str) -> str:
    return "".join(f"\\u{ord(character):04x}" for character in text)


ECHOES = {
    "as it is": KEY,
    "the header": f"Bearer {KEY}",
    "upper case": f"BEARER {KEY.upper()}",
    "URL": quote(KEY, safe=""),
    "URL, every character": "".join(f"%{ord(c):02X}" for c in KEY),
    "URL twice": quote(quote(KEY, safe=""), safe=""),
    "base64": base64.b64encode(f"Bearer {KEY}".encode()).decode(),
    "base64, other place": base64.urlsafe_b64encode(f"is Bearer {KEY}!".encode()).decode(),
    "base64 in lines": base64.encodebytes(f"Authorization: Bearer {KEY}".encode() * 2).decode(),
    "hexadecimal": KEY.encode().hex(),
    "JSON": escaped(KEY),
    "Python, wide": "".join(f"\\U{ord(character):08x}" for character in KEY),
    "Python, octal": "".join(f"\\{ord(character):o}" for character in KEY),
    "JSON in JSON": json.dumps(escaped(KEY)),
    "slashes": KEY.replace("/", "\\/"),
    "HTML": html.escape(KEY).replace("/", "&#x2F;"),
    "cut off": KEY[:-9],
    "the end": "..." + KEY[9:],
}


@pytest.mark.parametrize("kind", ECHOES)
def test_scrubbed_texts_hold_no_part_of_a_secret(kind):
    scrub, text = scrubber([KEY]), f"wrong key {ECHOES[kind]} (see https://a.b/?c=%20)"
    assert hides(scrub(text)) and INSTEAD in scrub(text)
    assert scrub(text).startswith("wrong key ") and scrub(text).endswith(")")


def hides(text: str) -> bool:
    """Whether a text shows no part of the key, nor its usual encodings."""
    forms = [KEY, base64.b64encode(KEY.encode()).decode(), KEY.encode().hex(), escaped(KEY)]
    forms += [quote(KEY, safe=""), base64.b64encode(b"." + KEY.encode()).decode()[2:]]
    forms += [base64.b64encode(b".." + KEY.encode()).decode()[3:]]
    text = text.lower()
    return not any(
        form[i : i + PART].lower() in text for form in forms for i in range(len(form) - PART - 3)
    )


def test_texts_without_secrets_are_left_alone_in_linear_time():
    scrub = scrubber([KEY, "EMPTY"])
    assert scrub(r"\U00110000 \777 \8") == r"\U00110000 \777 \8"
    texts = [r"\frac{1}{2} of 50% &amp; a %41 \u0041", "sk-proj-", "", "É\u0130ß\ud83d", "empt y"]
    assert [scrub(text) for text in texts] == texts
    assert scrub("an empty key") == f"an {INSTEAD} key" and scrubber([])(KEY) == KEY

    def seconds(length: int) -> float:
        text = (r"\frac{1}{2} 50% &x" * length)[:length]
        return min(timed(lambda: scrub(text)) for _ in range(3))

    assert seconds(400_000) < 10 * seconds(100_000)


def timed(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def test_the_key_is_on_no_screen_and_in_no_file(tmp_path, capsys):
    """Refused, answered and answered by an error, with the key in every encoding."""
    echoes = list(ECHOES.values())
    count = len(echoes)
    write_questions(tmp_path, count)

    def reply(headers, request: bytes) -> list[bytes]:
        assert headers["Authorization"] == f"Bearer {KEY}"
        number = int(request.split(b"has thing ")[1].split(b"?")[0])
        hostile = f"\x1b[31m\u202e\x9b {echoes[number]} " + "x" * 5000
        kind = json.loads(request)["seed"] % 4
        if kind == 0:
            return [response(json.dumps({"error": {"message": hostile}}).encode(), "400")]
        if kind == 1:
            return [response(hostile.encode(), "422")]
        if kind == 2:
            return [response(json.dumps({"error": {"message": hostile}}).encode())]
        return [response(json.dumps(changed(content=f"{echoes[number]}\n{TEXT}")).encode())]

    with raw_server(reply) as url:
        candidates = tmp_path / "candidates.json"
        code = chains(tmp_path, url, candidates, "--max_retries", "0", "--concurrency", "1")
    assert code in (0, 1)
    shown = capsys.readouterr()
    lost = json.loads((tmp_path / "candidates.lost.json").read_text())
    assert len(lost) > count and all(len(entry["why"]) <= 200 for entry in lost)
    texts = [shown.out, shown.err, *(p.read_text() for p in tmp_path.glob("*.json*"))]
    assert sum(INSTEAD in text for text in texts) >= 4
    for text in texts:
        assert hides(text)
    assert not {"\x1b", "\u202e", "\x9b"} & set(shown.err + "".join(e["why"] for e in lost))


def test_the_password_of_a_proxy_is_a_secret_too(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://me:hunter2%40x@127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    _, [error] = said({"error": {"message": "not hunter2@x"}}, status="400")
    assert f"not {INSTEAD}" in str(error) and "hunter2" not in str(error)


def test_an_unusable_proxy_is_said_before_anything_is_sent(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://me:hunter2@a:b")
    with pytest.raises(MissingReasonerError, match="cannot be used: ") as caught:
        Server("rule", "Think.", "http://a/v1")
    assert "hunter2" not in str(caught.value)


def test_a_placeholder_for_a_key_changes_no_rollout(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "EMPTY")
    _, [rollout] = said(changed(content="The box is EMPTY."))
    assert rollout.text == "The box is EMPTY."


def test_unusable_keys_addresses_and_options_are_said_before_anything_is_sent(
    tmp_path, capsys, monkeypatch
):
    write_questions(tmp_path, 1)
    output = tmp_path / "c.json"
    for address in (
        "localhost:8000/v1",
        "http://[::1/v1",
        "http://a:b/v1",
        "ftp://a/v1",
        "http:///",
    ):
        assert chains(tmp_path, address, output) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {address}: ")
    for place in ("http://me:hunter2@a", "me:hunter2@a:8", "http:/me:hunter2@a", "//me:hunter2@a"):
        for address in (f"{place}/v1", place.replace("//", "///")):
            assert chains(tmp_path, address, output) == 2
            assert "hunter2" not in (said := capsys.readouterr().err) and "OPENAI_API_KEY" in said
    for name in ("n", "stream", "messages"):
        more = ("--request_options", json.dumps({name: 4}))
        assert chains(tmp_path, "http://a/v1", output, *more) == 2
        assert repr(name) in capsys.readouterr().err
    assert chains(tmp_path, "http://a/v1", output, "--instruction", str(tmp_path / "none")) == 2
    assert str(tmp_path / "none") in capsys.readouterr().err
    monkeypatch.setenv("OPENAI_API_KEY", "sk-\u2026")
    with pytest.raises(MissingReasonerError, match="OPENAI_API_KEY"):
        Server("rule", "Think.", "http://a/v1")
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    with raw_server(lambda headers, _: [response(headers["Authorization"].encode(), "400")]) as url:
        _, [error] = ask(url)
    assert INSTEAD in str(error)


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


def check(found: Rollout | ItemError | ReasonerError) -> None:
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
