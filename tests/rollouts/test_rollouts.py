"""Chains and Monte-Carlo labels: schedules, journal, faults, kills, a real server, a checkpoint."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import json
import random
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import own_benchmark
from benchmarks.own_benchmark import commands
from data.make_questions import write_questions as make_questions
from reweighting.files import FileError
from reweighting.records.reader import RecordReader, load_candidates, load_meta, load_train
from reweighting.records.steps import split_steps
from reweighting.rollouts import __main__ as rollouts
from reweighting.rollouts.journal import Journal
from reweighting.rollouts.openai_server import Pace, Server, _retry_after
from reweighting.rollouts.reasoner import Prompt, prepare_image
from reweighting.rollouts.schedules import (
    Adaptive,
    Published,
    half_width,
    posterior_accuracies,
    select_prefixes,
)
from tests.conftest import REPOSITORY
from tests.support.model_server import free_port, model_server, running

REASONER = REPOSITORY / "weights" / "tiny-reasoner"
INSTRUCTION = REASONER / "instruction.txt"
needs_openai = pytest.mark.skipif(
    importlib.util.find_spec("openai") is None, reason="the openai package is not installed"
)


def write_questions(folder: Path, count: int, *special: str) -> Path:
    """Questions of all difficulties for the model server, and ``special`` ones at the end."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0)
    texts = [f"[{(0, 30, 60, 90, 100)[n % 5]}] Which colour has thing {n}?" for n in range(count)]
    lines = []
    for number, text in enumerate([*texts, *special]):
        image = f"images/{number % 5}.png"
        picture = pixels.integers(0, 255, (28, 28, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder / image)
        record = {"id": f"q{number}", "question": text, "image_path": image}
        record |= {"answer": "red", "dataset": ("chart", "map")[number % 2]}
        lines.append(json.dumps(record) + "\n")
    path = folder / "questions.jsonl"
    path.write_text("".join(lines))
    return path


def flags(folder: Path, url: str, *more: str) -> list[str]:
    return [
        *("--image_root", str(folder), "--model", "rule", "--base_url", url),
        *("--concurrency", "16", "--timeout", "1", *more),
    ]


def chains(folder: Path, url: str, output: Path, *more: str) -> int:
    questions = folder / "questions.jsonl"
    meta = ("--meta_output", str(output.with_name("meta.json")))
    command = ["chains", "--questions", str(questions), "--output", str(output), *meta]
    return rollouts.main([*command, *flags(folder, url, "--samples", "4", *more)])


def label_command(folder: Path, url: str, candidates: Path, output: Path, *more: str) -> list[str]:
    command = ["label", "--candidates", str(candidates), "--output", str(output)]
    return [*command, *flags(folder, url, *more)]


# ---- when to stop, what is kept


def test_adaptive_rounds_stop_where_one_by_one_would():
    rng = random.Random(0)
    for _ in range(300):
        schedule = Adaptive(rng.randint(1, 6), rng.randint(6, 40), rng.choice([0.05, 0.1, 0.15]))
        outcomes = [rng.random() < rng.choice([0.02, 0.3, 0.95]) for _ in range(40)]
        single = next(n for n in range(1, 41) if schedule.enough(sum(outcomes[:n]), n))
        times = 0
        while more := schedule.wanted(sum(outcomes[:times]), times, times):
            times += more
        assert times == single


def test_half_width_is_the_deviation_of_the_posterior():
    draws = np.random.default_rng(0).beta(3.5, 5.5, 200_000)
    assert half_width(3, 8) == pytest.approx(draws.std(), rel=0.01)
    assert half_width(0, 5) < Adaptive().tolerance < half_width(8, 15)


def test_published_rule_by_hand():
    rule = Published(max_rollouts=10)
    # the own chain is the first one: three more, and all ten where they are mixed
    assert [rule.wanted(score, 1, 0) for score in (0, 1)] == [3, 3]
    assert rule.wanted(4, 4, 3) == rule.wanted(0, 4, 3) == 0
    assert rule.wanted(1, 4, 3) == 6
    assert rule.wanted(2, 3, 9) == 0  # one short completion did not count, but was asked for
    assert not rule.counts("too short", last_step=False)
    assert rule.counts("Final answer: B", last_step=True)


def test_posterior_accuracies_are_closer_to_the_truth():
    rng = np.random.default_rng(0)
    truth = rng.choice([0.05, 0.2, 0.8, 0.95], 600)
    times = rng.choice([4, 8, 16], 600)
    scores = rng.binomial(times, truth)
    found = np.array(posterior_accuracies(scores, times))
    assert abs(found - truth).mean() < 0.85 * abs(scores / times - truth).mean()
    order = np.argsort(scores[times == 8])
    assert (np.diff(found[times == 8][order]) >= 0).all()


def test_selection_takes_fractions_first_then_balances():
    def record(domain: str, score: int, times: int = 8) -> dict:
        return {"dataset": domain, "score": score, "times": times, "accuracy": score / times}

    a = [record("a", s) for s in (0, 8, 3, 8, 8, 5, 0, 8, 8)]
    b = [record("b", s) for s in (8, 8, 0)]
    kept = select_prefixes(a + b, 6, seed=0)
    scores = [r["score"] for r in kept if r["dataset"] == "a"]
    assert sorted(scores) == [0, 0, 3, 5, 8, 8]
    assert [r["score"] for r in kept if r["dataset"] == "b"] == [8, 8, 0]
    assert kept == [r for r in a + b if any(r is k for k in kept)]  # order of the file
    assert select_prefixes(a + b, 6, seed=0) == kept
    few = select_prefixes(a, 1, seed=0)
    assert [0 < r["accuracy"] < 1 for r in few] == [True]


def test_meta_set_cannot_be_told_by_its_form():
    def chain(length: int, answer: str, steps: bool = True) -> str:
        opening = "Step 1: " if steps else ""
        return f"{opening}{'x' * length}\nFinal answer: {answer}"

    candidates = [chain(50, "red"), chain(10, "blue"), chain(45, "blue"), chain(9, "b", False)]
    record = {"question": "Q", "image_path": "i.png", "dataset": "d", "candidates": candidates}
    pure = {**record, "candidates": candidates[:1], "true_false": [True]}
    record["true_false"] = [True, False, False, False]
    meta = rollouts.meta_records([record, pure, record])
    assert [m["true_false"] for m in meta] == [False, True, True, False]
    assert meta[0]["input"] == f"Q\n\n{candidates[2]}"  # the most alike in length
    assert meta[1]["input"] == f"Q\n\n{candidates[0]}"


# ---- journal


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
    assert _retry_after({"retry-after": "1.5"}) == 1.5
    assert _retry_after({}) == 0
    assert _retry_after({"retry-after": "soon"}) == 0
    assert _retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) < 0


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
    random.Random(0).shuffle(lines)  # as if they had come in another order
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
            late = asyncio.create_task(server.sample(Prompt("[100] Why?", image), [1]))
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


# ---- a local checkpoint


@pytest.fixture(scope="module")
def policy():
    from reweighting.rollouts.local_checkpoint import Policy

    instruction = INSTRUCTION.read_text().strip()
    return Policy(REASONER, instruction, max_tokens=120, precision="fp32")


@pytest.fixture(scope="module")
def demo_questions(tmp_path_factory) -> Path:
    """A file of questions of the demo world."""
    return make_questions(tmp_path_factory.mktemp("demo"), "policy", 2)


def prompt_of(questions: Path, number: int, prefix: str = "") -> Prompt:
    record = json.loads(questions.read_text().splitlines()[number])
    return Prompt(record["question"], str(questions.parent / record["image_path"]), prefix)


def sample(policy, prompt: Prompt, seeds) -> list:
    return asyncio.run(policy.sample(prompt, seeds))


def test_shared_prefill_gives_what_a_plain_forward_gives(policy, demo_questions):
    prompt = prompt_of(demo_questions, 0, "Step 1: the question asks for the colour.")
    policy.temperature, temperature = 0.0, policy.temperature
    try:
        ours = sample(policy, prompt, [1, 2])
    finally:
        policy.temperature = temperature
    inputs = policy._inputs(prompt)
    plain = policy.model.generate(**inputs, do_sample=False, max_new_tokens=120)
    theirs = policy._rollout(plain[0, inputs["input_ids"].shape[1] :].tolist(), 0).text
    assert ours[0].text == ours[1].text == theirs
    assert ours[0].finish_reason == "stop" and "Final answer:" in theirs


def test_a_rollout_depends_on_its_seed_alone(policy, demo_questions):
    prompt = prompt_of(demo_questions, 1)
    together = [rollout.text for rollout in sample(policy, prompt, range(6))]
    assert len(set(together)) > 1
    assert [sample(policy, prompt, [seed])[0].text for seed in (4, 2)] == [
        together[4],
        together[2],
    ]


def test_samples_follow_the_models_probabilities(policy, demo_questions):
    """The first word after a prefix that leaves two: their shares against the softmax."""
    from reweighting.rollouts.local_checkpoint import GumbelNoise

    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).repeat(4000, 1)
    drawn = GumbelNoise(range(4000), 0.7)(torch.zeros(4000, 1), logits).argmax(-1)
    shares = torch.bincount(drawn, minlength=4) / 4000
    assert shares.tolist() == pytest.approx(torch.softmax(logits[0] / 0.7, 0).tolist(), abs=0.03)


# ---- a real server, the whole chain


@needs_openai
def test_the_whole_chain_through_transformers_serve(tmp_path):
    """The documented commands, small, with a faulty proxy before the server."""
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
