"""Keys and passwords: on no screen, in no file, in no encoding that a server may echo."""

from __future__ import annotations

import importlib.util
import json
import time

import pytest

from reweighting.rollouts.openai_server import Server
from reweighting.system.server.errors import UnusableServerError
from reweighting.system.server.scrubbing import INSTEAD, scrubber
from tests.rollouts.commands import chains, write_questions
from tests.rollouts.server import ECHOES, KEY, TEXT, ask, changed, hides, said
from tests.support.model_server import last_response as response
from tests.support.model_server import raw_server

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("openai") is None, reason="the openai package is not installed"
)


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.mark.parametrize("kind", ECHOES)
def test_scrubbed_texts_hold_no_part_of_a_secret(kind):
    scrub, text = scrubber([KEY]), f"wrong key {ECHOES[kind]} (see https://a.b/?c=%20)"
    assert hides(scrub(text)) and INSTEAD in scrub(text)
    assert scrub(text).startswith("wrong key ") and scrub(text).endswith(")")


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
    with pytest.raises(UnusableServerError, match="cannot be used: ") as caught:
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
    with pytest.raises(UnusableServerError, match="OPENAI_API_KEY"):
        Server("rule", "Think.", "http://a/v1")
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    with raw_server(lambda headers, _: [response(headers["Authorization"].encode(), "400")]) as url:
        _, [error] = ask(url)
    assert INSTEAD in str(error)
