"""Scoring through a server: equal scores, and what a faulty or lying one costs."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import warnings
from pathlib import Path

import pytest

from reweighting.evaluate import __main__ as evaluation
from reweighting.export.vllm import LARGEST, read_score
from reweighting.selection import __main__ as selection
from reweighting.system.server.body import Unreadable
from tests.conftest import REPOSITORY
from tests.export.runs import exported, make_run
from tests.rollouts.commands import needs_openai
from tests.rollouts.server import KEY, hides
from tests.support.model_server import (
    hashed_score,
    last_response,
    model_server,
    path_server,
    score_answer,
)
from tests.support.vllm_server import Scores, vllm_server

pytestmark = needs_openai
DATA = REPOSITORY / "data"
HEADS = ("linear", "plus_minus")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {head: make_run("qwen2_vl", head, folder / head) for head in HEADS}


@pytest.fixture(scope="module")
def recipes(runs, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exports")
    return {
        head: exported(run, folder / head, "--for", "vllm") / "reward.json"
        for head, run in runs.items()
    }


def write_candidates(path: Path, count: int, others: bool = True) -> Path:
    """Questions of the demo, of which some name several images, or none."""
    records = json.loads((DATA / "validation.json").read_text())[: 10 * count : 10]
    for record in records:
        record["candidates"] = record["candidates"][-3:]
        for name in ("true_false", "step_correct"):
            record[name] = record[name][-3:]
    if others:
        pictures = [record["image_path"] for record in records]
        records[0]["image_path"] = pictures[:2]
        del records[1]["image_path"]
    path.write_text(json.dumps(records))
    return path


def common(data: Path, output: Path) -> list[str]:
    return [
        *("--candidates", str(data), "--image_root", str(DATA), "--output_dir", str(output)),
    ]


def through(url: str, recipe: Path, *more: str) -> list[str]:
    return ["--server", url, "--recipe", str(recipe), "--concurrency", "8", *more]


def here(run: Path) -> list[str]:
    return ["--weights_path", str(run), "--device", "cpu", "--precision", "fp32"]


def lines_of(folder: Path) -> list[dict]:
    text = (folder / "few" / "samples.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def files_of(folder: Path) -> dict[str, bytes]:
    """What must not depend on how a run went."""
    names = ("few/samples.jsonl", "results.json")
    return {name: (folder / name).read_bytes() for name in names}


def assert_same_choices(left: Path, right: Path) -> None:
    theirs, ours = lines_of(left), lines_of(right)
    assert len(theirs) == len(ours) > 0
    for one, other in zip(theirs, ours, strict=True):
        for z, expected in zip(one["step_log_odds"], other["step_log_odds"], strict=True):
            assert z == pytest.approx(expected, abs=1e-5)
        assert one["chosen"] == other["chosen"]
    assert (left / "results.json").read_text() == (right / "results.json").read_text()


@pytest.mark.parametrize("head", HEADS)
def test_a_selection_is_the_same_as_on_this_machine(runs, recipes, tmp_path, capsys, head):
    data = write_candidates(tmp_path / "few.json", 5)
    assert selection.main([*common(data, tmp_path / "here"), *here(runs[head])]) == 0
    scores = Scores(runs[head])
    with vllm_server(scores) as url:
        command = [*common(data, tmp_path / "there"), *through(url, recipes[head])]
        assert selection.main(command) == 0
    assert_same_choices(tmp_path / "there", tmp_path / "here")
    assert "make sure" not in capsys.readouterr().err
    whole = files_of(tmp_path / "there")
    # The example of the recipe, then every prefix once, however many candidates begin with it.
    example = json.loads(recipes[head].read_text())["example"]
    for body, z in zip(scores.asked[:2], example["log_odds"], strict=True):
        assert read_score(json.dumps(scores.answer(body)).encode())[0] == pytest.approx(z, abs=1e-5)
    assert len({json.dumps(body) for body in scores.asked}) == len(scores.asked)
    assert selection.main(command) == 0  # the server is gone, and not needed
    assert files_of(tmp_path / "there") == whole


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_the_whole_validation_set_is_the_same(runs, recipes, tmp_path, head):
    data = tmp_path / "few.json"
    data.write_text((DATA / "validation.json").read_text())
    assert selection.main([*common(data, tmp_path / "here"), *here(runs[head])]) == 0
    with vllm_server(Scores(runs[head])) as url:
        assert (
            selection.main([*common(data, tmp_path / "there"), *through(url, recipes[head])]) == 0
        )
    assert_same_choices(tmp_path / "there", tmp_path / "here")


def test_an_evaluation_is_the_same_as_on_this_machine(runs, recipes, tmp_path):
    data = write_candidates(tmp_path / "few.json", 4)
    found = {}
    with vllm_server(Scores(runs["linear"])) as url:
        ways = {"here": here(runs["linear"]), "there": through(url + "/v1/", recipes["linear"])}
        for name, way in ways.items():
            command = ["--benchmark", "candidates", "--data", str(data), "--image_root", str(DATA)]
            assert evaluation.main([*command, "--output_dir", str(tmp_path / name), *way]) == 0
            found[name] = json.loads((tmp_path / name / "results.json").read_text())
    model = {name: results["rows"]["model"]["all steps"] for name, results in found.items()}
    for measure, value in model["here"].items():
        assert model["there"][measure] == pytest.approx(value, abs=1e-4), measure


# ---- a server that stalls, lies or goes away


def lying(answer: dict | bytes, status: str = "200") -> bytes:
    return last_response(
        answer if isinstance(answer, bytes) else json.dumps(answer).encode(), status
    )


GOOD = score_answer("/classify", 0.5)
ITEM = GOOD["data"][0]
LIES = {
    "HTML": b"<html>It works!</html>",
    "nothing": b"",
    "no object": [0.5],
    "an error": {"error": {"message": "no GPU", "type": "x", "code": 200}},
    "no scores": {"data": []},
    "two scores": {"data": [ITEM, ITEM]},
    "another's score": {"data": [{**ITEM, "index": 1}]},
    "no item": {"data": [0.5]},
    "no numbers": {"data": [{"index": 0}]},
    "two classes": {"data": [{**ITEM, "probs": [0.5, 0.5]}]},
    "an embedding": {"data": [{"index": 0, "data": [0.1] * 64}]},
    "embeddings of tokens": {"data": [{"index": 0, "data": [[0.1] * 64] * 9}]},
    "no tokens": {"data": [{"index": 0, "data": [[]]}]},
    "not a number": json.dumps({"data": [{**ITEM, "probs": [float("nan")]}]}).encode(),
    "infinity": json.dumps({"data": [{**ITEM, "probs": [float("-inf")]}]}).encode(),
    "out of range": {"data": [{**ITEM, "probs": [2 * LARGEST]}]},
    "a text": {"data": [{**ITEM, "probs": ["0.5"]}]},
    "two kinds of score": {"data": [{**ITEM, "data": [0.5]}]},
    "a truth": {"data": [{**ITEM, "probs": [True]}]},
}


@pytest.mark.parametrize("kind", LIES)
def test_a_lie_is_no_score(kind):
    body = LIES[kind] if isinstance(LIES[kind], bytes) else json.dumps(LIES[kind]).encode()
    with pytest.raises(Unreadable):
        read_score(body)


def test_the_last_token_counts_and_the_number_of_tokens_may_be_unsaid():
    assert read_score(json.dumps(GOOD).encode()) == (0.5, 7)
    tokens = {"data": [{"index": 0, "object": "pooling", "data": [[1.0], [2.0], [-3.5]]}]}
    assert read_score(json.dumps(tokens).encode()) == (-3.5, 0)
    assert read_score(json.dumps({**GOOD, "usage": 7}).encode()) == (0.5, 0)


@pytest.fixture(scope="module")
def whole(runs, recipes, tmp_path_factory) -> tuple[Path, dict[str, bytes], int]:
    """A file of candidates, what an undisturbed run makes of it, and how many requests it takes."""
    folder = tmp_path_factory.mktemp("whole")
    data, scores = write_candidates(folder / "few.json", 4), Scores(runs["linear"])
    with vllm_server(scores) as url:
        command = [*common(data, folder / "out"), *through(url, recipes["linear"])]
        assert selection.main(command) == 0
    return data, files_of(folder / "out"), len(scores.asked)


def test_stalls_and_lies_cost_time_only(runs, recipes, whole, tmp_path):
    data, expected, _ = whole
    scores, kinds = Scores(runs["linear"]), iter([*LIES.values(), "stall", "torn", "500", "429"])

    def fault(number: int, body: dict) -> bytes | None:
        if number < 2 or number % 2:  # the example; every other request
            return None
        kind = next(kinds, None)
        if kind == "stall":
            time.sleep(3)
        if kind == "torn":
            return lying(GOOD)[:-20]
        if kind in ("500", "429"):
            return lying({"error": {"message": "try again"}}, kind)
        return lying(kind) if isinstance(kind, dict | list | bytes) else None

    with vllm_server(scores, fault) as url:
        more = ("--timeout", "2", "--max_retries", "6")
        command = [*common(data, tmp_path), *through(url, recipes["linear"], *more)]
        assert selection.main(command) == 0
    assert files_of(tmp_path) == expected
    assert next(kinds, None) is None  # all of them were told


def test_a_server_that_goes_away_costs_what_was_under_way(runs, recipes, whole, tmp_path, capsys):
    data, expected, requests = whole
    scores = Scores(runs["linear"])
    more, folder = ("--max_retries", "0"), tmp_path / "out"
    for alive in (7, 30):
        with vllm_server(scores, lambda n, _, alive=alive: b"\r\n" if n >= alive else None) as url:
            command = [*common(data, folder), *through(url, recipes["linear"], *more)]
            assert selection.main(command) == 1
        said = capsys.readouterr().err
        assert "questions lack scores" in said or "requests in a row failed" in said
        assert said.endswith("the same command goes on from here\n")
        assert not (folder / "few" / "samples.jsonl").exists()
    with vllm_server(scores) as url:  # at another address
        assert selection.main([*common(data, folder), *through(url, recipes["linear"])]) == 0
    assert files_of(folder) == expected
    assert len(scores.asked) == requests + 4  # the example of two steps, twice again


def test_requests_are_limited_in_number_and_time(runs, recipes, tmp_path, capsys):
    data = write_candidates(tmp_path / "few.json", 2)
    lock, under_way, most = threading.Lock(), 0, 0

    def counted(number: int, body: dict) -> None:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.05)
        with lock:
            under_way -= 1

    with vllm_server(Scores(runs["linear"]), counted) as url:
        command = [*common(data, tmp_path / "out"), *through(url, recipes["linear"])]
        assert selection.main([*command, "--concurrency", "3"]) == 0
    assert most == 3
    capsys.readouterr()
    with vllm_server(Scores(runs["linear"]), lambda *_: time.sleep(2)) as url:
        more = ("--timeout", "0.3", "--max_retries", "1")
        command = [*common(data, tmp_path / "slow"), *through(url, recipes["linear"], *more)]
        assert selection.main(command) == 1
    said = capsys.readouterr().err
    assert "not score the example: no answer within 0.3 s (2 attempts)" in said


def test_a_killed_run_ends_with_the_same_files(runs, recipes, whole, tmp_path):
    data, expected, requests = whole

    def slow(number: int, body: dict) -> None:
        time.sleep(0.1)

    journal = tmp_path / "few" / "server.journal.jsonl"
    with vllm_server(Scores(runs["linear"]), slow) as url:
        command = [*common(data, tmp_path), *through(url, recipes["linear"])]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about threads: the child uses none of this process
            child = os.fork()  # has everything imported already
        if child == 0:
            try:
                selection.main(command)
            finally:
                os._exit(0)
        deadline = time.monotonic() + 60
        while not journal.exists() or journal.read_bytes().count(b"\n") < 10:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
    kept = journal.read_bytes().count(b"\n")
    assert 10 <= kept < requests - 2
    journal.write_bytes(journal.read_bytes() + b'{"key": "torn')
    scores = Scores(runs["linear"])
    with vllm_server(scores) as url:
        assert selection.main([*common(data, tmp_path), *through(url, recipes["linear"])]) == 0
    assert len(scores.asked) == requests - kept
    assert files_of(tmp_path) == expected


def test_a_refused_question_can_be_left_out(runs, recipes, whole, tmp_path, capsys):
    data, expected, _ = whole
    question = json.loads(data.read_text())[2]["question"]

    def fault(number: int, body: dict) -> bytes | None:
        refused = question in json.dumps(body)
        return lying({"error": {"message": "the prompt is too long"}}, "400") if refused else None

    with vllm_server(Scores(runs["linear"]), fault) as url:
        command = [*common(data, tmp_path), *through(url, recipes["linear"])]
        assert selection.main(command) == 1
        said = capsys.readouterr().err
        assert "1 of 4 questions lack scores:" in said and "--skip_bad_records leaves" in said
        assert "record 3: step 1: refused: 400: the prompt is too long" in said
        other = tmp_path / "skipped"
        command = [*common(data, other), *through(url, recipes["linear"], "--skip_bad_records")]
        assert selection.main(command) == 0
        assert "1 of 4 questions lack scores and are left out:" in capsys.readouterr().err
    assert [line["record"] for line in lines_of(other)] == [1, 2, 4]
    with vllm_server(Scores(runs["linear"])) as url:  # it takes longer prompts now
        command = [*common(data, other), *through(url, recipes["linear"], "--skip_bad_records")]
        assert selection.main(command) == 0
    assert files_of(other) == expected


def test_another_model_on_the_server_is_noticed(runs, recipes, tmp_path, capsys):
    data = write_candidates(tmp_path / "few.json", 2)
    scores = Scores(runs["linear"])
    scores.bias += 1
    with vllm_server(scores) as url:
        command = [*common(data, tmp_path / "out"), *through(url, recipes["linear"])]
        assert selection.main(command) == 0
    said = capsys.readouterr().err
    assert "warning: the server gives the example in reward.json the log-odds" in said
    changed = json.loads(recipes["linear"].read_text())
    changed["example"]["log_odds"][0] += 1
    other = tmp_path / "other.json"
    other.write_text(json.dumps(changed))
    assert selection.main([*common(data, tmp_path / "out"), *through(url, other)]) == 2
    assert "results of another model, file or setting (weights)" in capsys.readouterr().err


def test_a_server_that_has_no_such_model_ends_the_command_at_once(runs, recipes, tmp_path, capsys):
    data = write_candidates(tmp_path / "few.json", 2)
    for status in ("401", "404", "501"):
        body = {"error": {"message": "The model does not support Classification API"}}
        with vllm_server(Scores(runs["linear"]), lambda *_, s=status, b=body: lying(b, s)) as url:
            command = [*common(data, tmp_path / "out"), *through(url, recipes["linear"])]
            assert selection.main(command) == 1
        assert f"127.0.0.1: {status}: The model does not support" in capsys.readouterr().err


def test_the_key_goes_to_the_server_and_nowhere_else(runs, recipes, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    data, seen = write_candidates(tmp_path / "few.json", 2), []

    def reply(path, headers, body) -> list[bytes]:
        seen.append(headers["Authorization"])
        if len(seen) <= 2:
            return [lying(score_answer(path, 0.0))]
        return [lying({"error": {"message": f"no {KEY}"}}, ("400", "500")[len(seen) % 2])]

    with path_server(reply) as url:
        more = ("--max_retries", "0")
        command = [*common(data, tmp_path / "out"), *through(url, recipes["linear"], *more)]
        assert selection.main(command) == 1
    shown = capsys.readouterr()
    assert set(seen) == {f"Bearer {KEY}"} and "no [secret]" in shown.err
    texts = [shown.out, shown.err]
    texts += [path.read_text() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert all(hides(text) for text in texts)


# ---- many requests


@pytest.mark.parametrize(
    "questions", [20, pytest.param(200, marks=pytest.mark.slow)], ids=["1,000", "10,000"]
)
def test_of_many_requests_none_is_lost_or_swapped(recipes, tmp_path, questions):
    """Against a server that answers with a hash of the request, and fails now and then."""
    recipe = json.loads(recipes["linear"].read_text())
    records = [
        {
            "question": f"Question {number}?",
            "candidates": [
                "\n".join(f"Step {k}: {number} {chain} {k}." for k in range(1, 6))
                for chain in range(10)
            ],
        }
        for number in range(questions)
    ]
    data = tmp_path / "few.json"
    data.write_text(json.dumps(records))
    with model_server(faults=0.01) as url:
        command = [*common(data, tmp_path / "out"), "--server", url, "--recipe"]
        command += [str(recipes["linear"]), "--concurrency", "64", "--timeout", "2"]
        assert selection.main(command) == 0
    [turn] = recipe["example"]["prompts"][0]["messages"]
    count = 0
    for record, line in zip(records, lines_of(tmp_path / "out"), strict=True):
        for text, log_odds in zip(record["candidates"], line["step_log_odds"], strict=True):
            steps = text.split("\n")
            for k, z in enumerate(log_odds, start=1):
                shown = record["question"] + "\n\n" + "\n".join(steps[:k])
                content = [{"type": "text", "text": shown}]
                body = {"messages": [{"role": turn["role"], "content": content}]}
                body |= {"add_generation_prompt": True, "use_activation": False}
                assert z == hashed_score(body)
                count += 1
    assert count == 50 * questions


# ---- flags


def test_flags_that_do_not_go_together_are_named(runs, recipes, tmp_path, capsys):
    data = write_candidates(tmp_path / "few.json", 2)

    def refusal(*flags: str) -> str:
        with pytest.raises(SystemExit) as stop:
            selection.main([*common(data, tmp_path / "out"), *flags])
        assert stop.value.code == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        return said

    run, recipe = str(runs["linear"]), str(recipes["linear"])
    assert "--weights_path --server is required" in refusal()
    assert "not allowed with argument" in refusal("--weights_path", run, "--server", "http://a")
    assert "--server needs --recipe" in refusal("--server", "http://a")
    served = ("--server", "http://a", "--recipe", recipe)
    assert "--device goes with --weights_path only" in refusal(*served, "--device", "cpu")
    assert "--precision goes with" in refusal(*served, "--precision", "fp32")
    local = ("--weights_path", run, "--device", "cpu")
    for flag, value in (("--timeout", "3"), ("--max_retries", "1"), ("--concurrency", "2")):
        assert f"{flag} goes with --server only" in refusal(*local, flag, value)
    assert "--recipe goes with --server only" in refusal(*local, "--recipe", recipe)


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda made: made.pop("score_head"), "score_head"),
        (lambda made: made.update(score_head="square"), "score_head"),
        (lambda made: made.update(step_pattern="("), "step_pattern"),
        (lambda made: made["image"].update(longest_side=0), "image.longest_side"),
        (lambda made: made["image"].pop("token_side"), "image.token_side"),
        (lambda made: made["example"].pop("log_odds"), "example.log_odds"),
        (lambda made: made["example"].update(log_odds=[1.0]), "example.log_odds"),
        (lambda made: made["example"].update(image="https://a/b.png"), "example.image"),
        (lambda made: made["example"].update(image="data:image/png;base64,AAAA"), "example.image"),
        (lambda made: made.update(score_head=["linear"]), "score_head"),
    ],
)
def test_a_damaged_recipe_is_named(recipes, tmp_path, capsys, change, expected):
    made = json.loads(recipes["linear"].read_text())
    change(made)
    path, data = tmp_path / "reward.json", write_candidates(tmp_path / "few.json", 2)
    path.write_text(json.dumps(made))
    assert selection.main([*common(data, tmp_path / "out"), *through("http://a", path)]) == 2
    said = capsys.readouterr().err
    assert said == f"error: {path}: field '{expected}' is missing or unusable; export again\n"


def test_an_unusable_address_is_named_before_anything_is_sent(recipes, tmp_path, capsys):
    data = write_candidates(tmp_path / "few.json", 2)
    for address in ("", "localhost:8000", "ftp://a", "http://me:hunter2@a"):
        command = [*common(data, tmp_path / "out"), *through(address, recipes["linear"])]
        assert selection.main(command) == 2
        said = capsys.readouterr().err
        assert "hunter2" not in said and ("VLLM_API_KEY" in said or f"error: {address}: " in said)
