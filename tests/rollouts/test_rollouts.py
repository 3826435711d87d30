"""The commands of rollouts: what is sent, faults, kills, refusals, a real server."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import subprocess
import sys
import time
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from benchmarks import own_benchmark
from benchmarks.own_benchmark import commands
from data.make_questions import write_questions as make_questions
from reweighting.records.reader import RecordReader, load_candidates, load_meta, load_train
from reweighting.records.steps import split_steps
from reweighting.rollouts import __main__ as rollouts
from reweighting.rollouts.openai_server import Server
from reweighting.rollouts.reasoner import Query, prepare_image
from reweighting.system.server.endpoint import Pace, retry_after
from tests.conftest import REPOSITORY
from tests.rollouts.commands import chains, label_command, needs_openai, write_questions
from tests.support.model_server import free_port, model_server, running

REASONER = REPOSITORY / "weights" / "tiny-reasoner"


# ---- what is sent


def test_images_are_shrunk_once_and_keep_what_they_can(tmp_path):
    gradient = np.linspace(0, 255, 800 * 600).reshape(600, 800).astype(np.uint8)
    Image.fromarray(gradient).convert("RGB").save(tmp_path / "photo.jpg", quality=95)
    Image.fromarray(gradient).convert("P").save(tmp_path / "palette.png", transparency=0)
    photo = prepare_image(str(tmp_path / "photo.jpg"), 512)
    assert prepare_image(str(tmp_path / "photo.jpg"), 512) is photo
    kind, encoded = photo.data_url.split(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(BytesIO(base64.b64decode(encoded))).size == (512, 384)
    palette = Image.open(BytesIO(prepare_image(str(tmp_path / "palette.png"), 512).body))
    assert (palette.mode, palette.size) == ("RGB", (512, 384))
    assert palette.getpixel((0, 0)) == (255, 255, 255)  # transparent, as the reward model sees it
    small = Image.fromarray(gradient[:28, :28])
    small.save(tmp_path / "small.png")
    body = prepare_image(str(tmp_path / "small.png"), 512).body
    assert (np.asarray(Image.open(BytesIO(body))) == np.asarray(small)).all()


def test_pace_holds_requests_and_tokens_to_their_rates():
    async def spend(pace: Pace, units: float, times: int) -> float:
        start = time.monotonic()
        for _ in range(times):
            await pace.wait()
            pace.spend(units)
        return time.monotonic() - start

    assert asyncio.run(spend(Pace(1200), 1, 9)) == pytest.approx(0.4, abs=0.15)
    assert asyncio.run(spend(Pace(60_000), 100, 5)) == pytest.approx(0.4, abs=0.15)
    assert asyncio.run(spend(Pace(None), 1e9, 5)) < 0.1


def test_retry_after_is_a_number_or_a_date():
    assert retry_after({"retry-after": "1.5"}) == 1.5
    assert retry_after({}) == 0
    assert retry_after({"retry-after": "soon"}) == 0
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) < 0


# ---- a server that answers by rule


@needs_openai
def test_chains_labels_selection(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-to-be-written")
    write_questions(tmp_path, 20, "[50] Which one is cut?")
    candidates, labelled = tmp_path / "candidates.json", tmp_path / "labelled.json"
    with model_server() as url:
        assert chains(tmp_path, url, candidates) == 0
        said = capsys.readouterr().out
        assert "4 chains cut off at --max_tokens" in said
        assert "4 of 84 candidates have no readable answer" in said
        for mode in ("prefill", "instruction"):
            more = ("--continuation", mode, "--price_in", "1", "--price_out", "4")
            command = label_command(tmp_path, url, candidates, labelled, *more)
            assert rollouts.main(command) == 0
    said = capsys.readouterr().out
    assert "tokens in" in said and "cost" in said

    reader = RecordReader(str(candidates), str(tmp_path))
    samples = load_candidates(reader)
    assert len(samples) == 21 and all(len(s.candidates) == 4 for s in samples)
    assert reader.read()[3]["id"] == "q3"
    assert not any(samples[0].true_false) and all(samples[4].true_false)
    assert not any(samples[20].true_false)  # cut off: wrong
    meta, warnings = load_meta(RecordReader(str(tmp_path / "meta.json"), str(tmp_path)))
    assert not warnings and 2 * sum(m.true_false for m in meta) == len(meta) > 8

    records = json.loads(labelled.read_text())
    assert len(load_train(RecordReader(str(labelled), str(tmp_path)))) == len(records) == 100
    assert all(r["accuracy"] == r["score"] / r["times"] for r in records)
    by_question = [[r for r in records if r["id"] == f"q{n}"] for n in range(20)]
    assert [[r["sid"] for r in question] for question in by_question] == [[1, 2, 3, 4, 5]] * 20
    assert by_question[0][2]["add"] == split_steps(samples[0].candidates[0])[2]
    means = [np.mean([r["accuracy"] for q in by_question[n::5] for r in q]) for n in range(5)]
    assert means == pytest.approx([0, 0.3, 0.6, 0.9, 1], abs=0.1)
    assert {r["times"] for r in by_question[0] + by_question[4]} == {5}  # stopped early
    assert max(r["times"] for r in records) == 16

    train = tmp_path / "train.json"
    command = ["select", "--labelled", str(labelled), "--output", str(train), "--per_domain", "30"]
    assert rollouts.main(command) == 0
    assert len(json.loads(train.read_text())) == 60
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"sk-not-to-be-written" not in path.read_bytes()


@needs_openai
def test_published_schedule_and_posterior_estimate(tmp_path):
    write_questions(tmp_path, 10)
    candidates, labelled = tmp_path / "candidates.json", tmp_path / "labelled.json"
    more = ("--schedule", "dreamprm", "--max_rollouts", "9", "--estimate", "posterior")
    with model_server() as url:
        assert chains(tmp_path, url, candidates) == 0
        assert rollouts.main(label_command(tmp_path, url, candidates, labelled, *more)) == 0
    for record in json.loads(labelled.read_text()):
        assert record["times"] in (4, 9)
        assert (record["score"] in (0, 4)) if record["times"] == 4 else 0 < record["score"] < 9
        assert 0 < record["accuracy"] < 1


@needs_openai
def test_the_same_journal_gives_the_same_file_and_costs_nothing(tmp_path, capsys):
    write_questions(tmp_path, 6)
    candidates, labelled = tmp_path / "candidates.json", tmp_path / "labelled.json"
    with model_server() as url:
        assert chains(tmp_path, url, candidates) == 0
        command = label_command(tmp_path, url, candidates, labelled)
        assert rollouts.main(command) == 0
    first = labelled.read_bytes()
    journal = tmp_path / "labelled.journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    random.Random(0).shuffle(lines)  # as if they had arrived in another order
    journal.write_text("".join(lines))
    labelled.unlink()
    capsys.readouterr()
    assert rollouts.main(command) == 0  # no server is there
    assert labelled.read_bytes() == first
    assert "0 are new" in capsys.readouterr().out


@needs_openai
def test_killed_twice_under_faults_equals_an_undisturbed_run(tmp_path):
    write_questions(tmp_path, 10)
    candidates = tmp_path / "candidates.json"
    disturbed, undisturbed = tmp_path / "disturbed.json", tmp_path / "undisturbed.json"
    with model_server() as url:
        assert chains(tmp_path, url, candidates) == 0
        assert rollouts.main(label_command(tmp_path, url, candidates, undisturbed)) == 0
    journal, whole = (path.with_suffix(".journal.jsonl") for path in (disturbed, undisturbed))
    total = len(whole.read_text().splitlines())
    with model_server(faults=0.2) as url:
        command = label_command(tmp_path, url, candidates, disturbed, "--timeout", "0.5")
        for share in (0.3, 0.6):
            process = subprocess.Popen(
                [sys.executable, "-m", "reweighting.rollouts", *command],
                cwd=REPOSITORY,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            while not journal.exists() or journal.read_bytes().count(b"\n") < share * total:
                assert process.poll() is None
                time.sleep(0.01)
            process.kill()
            process.wait()
        assert not disturbed.exists()
        assert rollouts.main(command) == 0
    assert disturbed.read_bytes() == undisturbed.read_bytes()
    # nothing lost, nothing counted twice
    ours, theirs = (sorted(path.read_text().splitlines()) for path in (journal, whole))
    assert ours == theirs


@needs_openai
def test_what_is_refused_costs_its_items_only(tmp_path, capsys):
    write_questions(tmp_path, 3, "[50] refuse me", "[50] to be filtered")
    candidates = tmp_path / "candidates.json"
    with model_server() as url:
        assert chains(tmp_path, url, candidates) == 0
    said = capsys.readouterr().err
    assert "record 4 is lost: refused" in said and "cannot read the image" in said
    assert "record 5 is lost: refused: content_filter" in said
    assert len(json.loads(candidates.read_text())) == 3
    lost = json.loads((tmp_path / "candidates.lost.json").read_text())
    assert [entry["record"] for entry in lost] == [4] * 4 + [5] * 4


@needs_openai
def test_a_lost_rollout_leaves_its_prefix_without_label(tmp_path, capsys):
    write_questions(tmp_path, 2)
    candidates, labelled = tmp_path / "candidates.json", tmp_path / "labelled.json"
    with model_server() as url:
        assert chains(tmp_path, url, candidates) == 0
        records = json.loads(candidates.read_text())
        first = records[0]["candidates"]
        first[0] = first[0].replace("Step 3:", "Step 3: refuse me,")
        candidates.write_text(json.dumps(records))
        command = label_command(tmp_path, url, candidates, labelled)
        assert rollouts.main(command) == 0
        capsys.readouterr()
        found = [(r["id"], r["sid"]) for r in json.loads(labelled.read_text())]
        assert found == [("q0", 1), ("q0", 2), *(("q1", n) for n in range(1, 6))]
    lost = json.loads((tmp_path / "labelled.lost.json").read_text())
    assert [(entry["record"], entry["step"]) for entry in lost] == [(1, 3), (1, 4), (1, 5)]


@needs_openai
def test_a_wrong_key_and_a_dead_server_end_the_run(tmp_path, capsys):
    write_questions(tmp_path, 30)
    candidates = tmp_path / "candidates.json"
    more = ("--max_retries", "0")
    assert chains(tmp_path, f"http://127.0.0.1:{free_port()}/v1", candidates, *more) == 1
    assert (
        "20 requests in a row failed, the last one: no answer: Cannot connect"
        in capsys.readouterr().err
    )
    write_questions(tmp_path, 0, "no such key")
    with model_server() as url:
        assert chains(tmp_path, url, candidates) == 1
    assert "127.0.0.1: " in capsys.readouterr().err
    assert not candidates.exists()


@needs_openai
def test_a_server_that_comes_back_is_waited_for():
    port = free_port()
    server = Server("rule", "Think.", f"http://127.0.0.1:{port}/v1", timeout=1.0)
    image = str(REPOSITORY / "data" / "images" / "train" / "00000.png")

    async def ask() -> str:
        try:
            late = asyncio.create_task(server.sample(Query("[100] Why?", image), [1]))
            await asyncio.sleep(1)
            command = [sys.executable, "-m", "tests.support.model_server", "--port", str(port)]
            with running(command, port):
                [rollout] = await late
                return rollout.text
        finally:
            await server.close()

    assert asyncio.run(ask()).endswith("Final answer: red")
    assert server.retries > 0


def test_bad_questions_are_named_before_anything_is_sent(tmp_path, capsys):
    path = write_questions(tmp_path, 3)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[0]["answer"] = 7
    records[1]["image_path"] = "images/none.png"
    records[2]["choices"] = "red"
    path.write_text(json.dumps(records))
    assert chains(tmp_path, "http://nowhere.invalid/v1", tmp_path / "c.json") == 2
    said = capsys.readouterr().err
    assert f"{path}: record 1: field 'answer': must be text, is 7" in said
    assert "record 2: field 'image_path'" in said and "does not exist" in said
    assert "record 3: field 'choices'" in said
    candidates = [{"question": "Q", "image_path": "images/0.png", "candidates": ["x"]}]
    (tmp_path / "c.json").write_text(json.dumps(candidates))
    command = label_command(tmp_path, "http://nowhere.invalid/v1", tmp_path / "c.json", tmp_path)
    assert rollouts.main(command) == 2
    assert "record 1: field 'dataset': is missing" in capsys.readouterr().err


def test_a_missing_package_or_checkpoint_is_said_plainly(tmp_path, capsys, monkeypatch):
    write_questions(tmp_path, 1)
    monkeypatch.setitem(sys.modules, "openai", None)
    assert chains(tmp_path, "http://nowhere.invalid/v1", tmp_path / "c.json") == 2
    assert "pip install 'openai[aiohttp]'" in capsys.readouterr().err
    command = ["chains", "--questions", str(tmp_path / "questions.jsonl"), "--output"]
    command += [str(tmp_path / "c.json"), "--image_root", str(tmp_path), "--device", "cpu"]
    assert rollouts.main([*command, "--policy", str(tmp_path / "nothing")]) == 2
    assert "--policy" in capsys.readouterr().err


# ---- all commands with a real server


@needs_openai
def test_the_whole_chain_through_transformers_serve(tmp_path):
    """The documented commands on little data, with a faulty proxy in front of the server."""
    pytest.importorskip("fastapi", reason="transformers[serving] is not installed")
    pytest.importorskip("uvicorn", reason="transformers[serving] is not installed")
    port = free_port()
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(REASONER)]
    command += ["--device", "cpu", "--port", str(port)]
    for name, count in (("train", 2), ("meta", 4), ("test", 2)):
        make_questions(tmp_path, name, count)
    training = ["--iteration_num", "4", "--unroll_steps", "2", "--lr", "1e-4"]
    label = ["--min_rollouts", "2", "--max_rollouts", "2"]
    with running(command, port), model_server(faults=0.1, upstream=port) as url:
        reasoner = ["--model", str(REASONER), "--base_url", url]
        reasoner += ["--concurrency", "4", "--timeout", "5"]
        assert own_benchmark.run(commands(tmp_path, reasoner, training, label)) == 0
    chains = json.loads((tmp_path / "test_chains.json").read_text())
    marks = [mark for record in chains for mark in record["true_false"]]
    assert len(marks) == 16 and 1 < sum(marks) < 16  # it reasons, and errs
    results = json.loads((tmp_path / "selected" / "results.json").read_text())["test_chains"]
    assert 0 <= results["mean_log_odds"]["8"]["accuracy"] <= results["oracle"]["8"]["accuracy"]
