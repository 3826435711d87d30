"""The demo data: every byte from its seed, and labels exactly as good as the card says."""

from __future__ import annotations

import hashlib
import io
import json
import random
import re
import subprocess
import sys
from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from data import make_demo
from data.world.held_out import HELD, held_questions, summary
from data.world.scenes import HELD_OUT, draw_scene, png, render, rgb
from data.world.simulated_reasoner import (
    MIXED,
    SEEING,
    THINKING,
    Chain,
    chance,
    draw,
    rollout,
    sample_chain,
    set_trap,
)
from data.world.tasks import TASKS, Question, draw_question
from data.world.training import TrainItem
from tests.conftest import REPOSITORY

DATA = REPOSITORY / "data"
TESTS = [held.name for held in HELD]
CORRUPTED = [domain for domain in make_demo.DOMAINS if domain.share]


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """A rebuild at full size."""
    return make_demo.build(seed=1)


@pytest.fixture(scope="module")
def sets(files: dict[str, bytes]) -> dict[str, list[dict]]:
    """The rebuilt JSON files, parsed."""
    return {name[:-5]: json.loads(body) for name, body in files.items() if name.endswith(".json")}


@pytest.fixture(scope="module")
def items() -> list[TrainItem]:
    """The training questions with their clean scores."""
    return make_demo.train_items(seed=1, size=10_000)


def final(text: str) -> str:
    """The answer a step 5 or a whole response ends with."""
    return re.split(r"(?:the answer is|Final answer:) ", text)[-1].rstrip(".")


def test_committed_files_are_a_rebuild(files):
    there = {
        path.relative_to(DATA).as_posix(): path
        for path in DATA.rglob("*")
        if path.suffix in (".json", ".png")
        and path.relative_to(DATA).parts[0] not in ("rollouts", "sources")
    }
    assert there.keys() == files.keys()
    for name, body in files.items():
        digest = hashlib.sha256(there[name].read_bytes()).hexdigest()
        assert digest == hashlib.sha256(body).hexdigest(), name
    assert sum(path.stat().st_size for path in DATA.rglob("*.*")) < 30e6


def test_command_line_repeats_and_follows_the_seed(tmp_path):
    def run(out: str, *args: str) -> dict[str, str]:
        command = [sys.executable, str(DATA / "make_demo.py"), "--out", str(tmp_path / out), *args]
        subprocess.run(command, check=True, capture_output=True)
        return {
            str(path.relative_to(tmp_path / out)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in (tmp_path / out).rglob("*.*")
        }

    first = run("a", "--seed", "3", "--size", "500")
    assert run("b", "--seed", "3", "--size", "500") == first
    other = run("c", "--seed", "4", "--size", "500")
    same = {name for name in first if other[name] == first[name]}
    assert same == {"domains.json"}


@pytest.mark.parametrize("size", ["7", "-50", "0"])
def test_odd_sizes_are_refused(size, tmp_path):
    command = [sys.executable, str(DATA / "make_demo.py"), "--out", str(tmp_path), "--size", size]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 2 and "multiple of 50" in answer.stderr


def test_train_records(sets, files):
    records = sets["train"]
    assert len(records) == 10_000
    assert Counter(r["dataset"] for r in records) == {d.name: 1000 for d in make_demo.DOMAINS}
    assert Counter(r["sid"] for r in records) == {sid: 2000 for sid in range(1, 6)}
    for record in records:
        assert list(record) == [
            "id",
            "sid",
            "input",
            "add",
            "ground_truth",
            "image_path",
            "dataset",
            "score",
            "times",
            "accuracy",
        ]
        assert record["accuracy"] == record["score"] / record["times"]
        assert isinstance(record["score"], int) and 0 <= record["score"] <= record["times"]
        assert re.findall(r"^Step (\d): ", record["add"], re.M) == [
            str(sid) for sid in range(1, record["sid"] + 1)
        ]
        assert record["add"] == record["add"].strip() and "Final" not in record["add"]
        assert record["image_path"] in files
        assert len((record["input"] + " " + record["add"]).split()) <= 110


def test_meta_pairs_a_right_and_a_wrong_chain(sets):
    records = sets["meta"]
    assert len(records) == 500
    assert Counter(r["dataset"] for r in records) == {name: 50 for name in TASKS}
    pairs = defaultdict(list)
    for record in records:
        question, response = record["input"].split("\n\n")
        assert len(re.findall(r"^Step \d: ", response, re.M)) == 5
        pairs[record["image_path"], question].append((record["true_false"], final(response)))
    assert len(pairs) == 250
    for (right, answer), (other_right, other) in pairs.values():
        assert {right, other_right} == {True, False} and answer != other
    first = [pair[0][0] for pair in pairs.values()]
    assert 90 < sum(first) < 160  # the order of the two gives nothing away


@pytest.mark.parametrize("name", TESTS)
def test_candidates(name, sets):
    records = sets[name]
    assert len(records) == 200
    assert {part for r in records for part in r["dataset"].split("+")} == set(TASKS)
    for record in records:
        assert len(record["candidates"]) == len(record["step_correct"]) == 8
        for text, right, steps in zip(
            record["candidates"], record["true_false"], record["step_correct"], strict=True
        ):
            assert right == (final(text) == record["answer"])
            assert len(steps) == 5 and steps == sorted(steps, reverse=True)
            assert right or not steps[-1]
    mixed = sum(0 < sum(r["true_false"]) < 8 for r in records) / len(records)
    assert mixed > 0.7
    numbers = summary(records)
    assert 0.5 <= numbers["single"] <= 0.64
    assert numbers["majority"] <= 0.70 and numbers["oracle"] >= 0.93


def test_a_sure_tone_says_nothing_in_clean_sets(sets):
    sure, plain = [], []
    for name in TESTS:
        for record in sets[name]:
            for text, right in zip(record["candidates"], record["true_false"], strict=True):
                (sure if "Clearly" in text else plain).append(right)
    assert abs(np.mean(sure) - np.mean(plain)) < 0.04


def test_images_open_and_no_split_shares_one(files):
    seen: dict[bytes, str] = {}
    for name, body in files.items():
        if not name.endswith(".png"):
            continue
        pixels = Image.open(io.BytesIO(body)).convert("RGB")
        side = 112 if name.startswith("images/test_hard") else 84
        assert pixels.size[0] == side or name.startswith("images/test_mix")
        split = name.split("/")[1]
        assert seen.setdefault(hashlib.sha256(pixels.tobytes()).digest(), split) == split, name


def test_png_holds_the_pixels():
    for kind in {task.scene for task in TASKS.values()}:
        for grid in (3, 4):
            image = render(draw_scene(random.Random(kind), kind, grid))
            opened = np.asarray(Image.open(io.BytesIO(png(image))).convert("RGB"))
            assert np.array_equal(opened, rgb(image))


@pytest.mark.parametrize("domain", make_demo.DOMAINS, ids=lambda domain: domain.name)
def test_corruption_is_as_stated(domain, sets, items):
    """Step 5 leaves nothing to sample: a clean score is 0 or all, by the words of the chain."""
    records = [r for r in sets["train"] if r["dataset"] == domain.name and r["sid"] == 5]
    wrong = []
    for r in records:
        clean = r["times"] * (final(r["add"]) == r["ground_truth"])
        wrong.append((r["score"] - clean) / r["times"] if clean == 0 else 1 - r["accuracy"])
    shift = {"inverted": 1.0, "noise": 0.5, "shortcut": 0.5}.get(domain.corruption, 0.0)
    assert np.mean(wrong) == pytest.approx(domain.share * shift, abs=0.09 if shift == 0.5 else 1e-9)
    numbered = [(n, item) for n, item in enumerate(items) if item.domain is domain]
    bad = [(n, item) for n, item in numbered if item.corrupted]
    assert len(bad) == round(200 * domain.share)
    swapped = sum(n != item.image_of for n, item in numbered)
    assert swapped == (len(bad) if domain.corruption == "images swapped" else 0)


def test_clean_scores_are_what_the_reasoner_gives_again(items):
    """Fresh rollouts of clean questions agree with the stored accuracies without bias."""
    rng, stored, again = random.Random(9), [], []
    for number, item in enumerate(items[:500]):
        if item.domain.name not in ("colour_cell", "digit_sum"):
            continue
        stream = make_demo.stream(1, "train", number)
        question = draw_question(stream, item.domain.name, hint=item.domain.hint)
        trap = set_trap(stream, question, MIXED)
        assert question.truth == item.question.truth
        for score, state in zip(item.scores, item.chain.states, strict=True):
            stored.append(score / 8)
            again.append(np.mean([rollout(rng, question, state, MIXED, trap) for _ in range(40)]))
    assert np.mean(stored) == pytest.approx(np.mean(again), abs=0.02)
    assert np.corrcoef(stored, again)[0, 1] > 0.9


def test_shortcut_follows_the_tone(sets):
    means = defaultdict(list)
    for r in sets["train"]:
        means[r["dataset"], r["add"].startswith("Step 1: Clearly")].append(r["accuracy"])
    gaps = {d: np.mean(means[d, True]) - np.mean(means[d, False]) for d in TASKS}
    assert gaps["arrow_end"] > 0.35
    assert max(abs(gap) for name, gap in gaps.items() if name != "arrow_end") < 0.2


def test_qualities_are_graded(sets):
    card = {entry["name"]: entry for entry in sets["domains"]}
    assert set(card) == set(TASKS)
    assert len(CORRUPTED) >= 6 and len({d.quality for d in CORRUPTED}) == len(CORRUPTED)
    easy = [r["accuracy"] for r in sets["train"] if r["dataset"] == "row_of"]
    assert np.mean(easy) > 0.9 and card["table_digit"]["rollouts"] < 4


def test_the_hint_makes_the_image_needless(sets):
    for r in sets["train"]:
        if r["dataset"] == "digit_sum":
            first, second = re.findall(r"is (\d)", r["input"])[:2]
            assert int(first) + int(second) == int(r["ground_truth"])


def test_a_models_own_labels_are_for_the_same_prefixes(sets):
    keys = ("id", "sid", "input", "add", "image_path", "ground_truth", "dataset")
    train = {tuple(record[key] for key in keys) for record in sets["train"]}
    labelled = json.loads((DATA / "rollouts" / "colour_cell.json").read_text())
    assert len(labelled) == 500
    for record in labelled:
        assert tuple(record[key] for key in keys) in train
        assert record["accuracy"] == record["score"] / record["times"]


def test_chance_is_what_rollouts_estimate():
    for number in range(12):
        rng = random.Random(number)
        question = draw_question(rng, list(TASKS)[number % len(TASKS)])
        trap = set_trap(rng, question, MIXED)
        chain = sample_chain(rng, question, MIXED, trap)
        for pieces in ((), *chain.states):
            exact = chance(question, pieces, MIXED, trap)
            right = sum(rollout(rng, question, pieces, MIXED, trap) for _ in range(1500))
            assert right / 1500 == pytest.approx(exact, abs=0.05)


@pytest.mark.parametrize("profile", [MIXED, SEEING, THINKING])
def test_error_profiles(profile):
    """First mistakes fall on the steps in about the stated proportions."""
    rng, first = random.Random(2), Counter()
    for _ in range(1500):
        _, chain = draw(rng, rng.choice(list(TASKS)), profile=profile)
        if not all(chain.step_correct):
            first[chain.step_correct.index(False)] += 1
    seeing = first[1] / sum(first.values())
    low, high = {MIXED: (0.42, 0.62), SEEING: (0.88, 1.0), THINKING: (0.05, 0.2)}[profile]
    assert low < seeing < high and first[2] == 0


def test_held_out_pairs_appear_in_the_combination_set_only():
    def share(novel: bool) -> float:
        rng, found = random.Random(1), []
        for _ in range(200):
            scene = draw_scene(rng, "shapes", novel=novel)
            found += [(scene.item(cell), scene.colour(cell)) in HELD_OUT for cell in scene.cells()]
        return float(np.mean(found))

    assert share(False) == 0 and share(True) > 0.4


def test_claims_are_right_half_of_the_time_and_truthful():
    rng, right = random.Random(3), []
    for _ in range(600):
        question = draw_question(rng, "colour_cell")
        text, true = question.claim(rng)
        row, column, colour = re.match(r"In (\w)(\w) I see (\w+)\.", text).groups()
        seen = question.scene.colours["ABCD".index(row)]["abcd".index(column)]
        assert true == (seen == colour)
        right.append(true)
    assert 0.45 < np.mean(right) < 0.6


def consistent(question: Question, chain: Chain) -> bool:
    """Whether the words alone give no mistake away; the colour at a path's end is in the image."""
    states = chain.states
    if any(later[: len(earlier)] != earlier for earlier, later in pairwise(states)):
        return False  # it contradicts what it said before
    read, seen, _, inferred, concluded = states[-1]
    return read == question.truth[0] and concluded == inferred == tuple(
        value if task.name == "arrow_end" else task.infer(question.scene, query, evidence)
        for task, query, evidence, value in zip(question.tasks, read, seen, inferred, strict=True)
    )


def test_text_alone_hardly_helps_where_perception_fails():
    """A perfect reader without eyes picks among the chains that do not contradict themselves."""
    card = (DATA / "README.md").read_text(encoding="utf-8")
    for held in HELD:
        right, single = [], []
        for question, chains in held_questions(1, held.name, 200):
            left = [chain for chain in chains if consistent(question, chain)] or chains
            right.append(np.mean([chain.right for chain in left]))
            single.append(np.mean([chain.right for chain in chains]))
        assert f"{np.mean(right):.2f} ({held.name.removeprefix('test_')})" in card, np.mean(right)
        if held.profile is SEEING:
            assert np.mean(right) - np.mean(single) < 0.05


def test_the_card_states_every_domain():
    card = (DATA / "README.md").read_text(encoding="utf-8")
    rows = {row.split("`")[1]: row for row in card.splitlines() if row.startswith("| `")}
    for domain in make_demo.DOMAINS:
        assert rows[domain.name].endswith(f"| {domain.quality:.2f} | {domain.rollouts} |")
        if domain.corruption in ("inverted", "images swapped", "noise", "shortcut"):
            assert f"{100 * domain.share:.0f} %" in rows[domain.name]
    for held in HELD:
        numbers = summary(json.loads((DATA / f"{held.name}.json").read_bytes()))
        stated = " | ".join(f"{value:.3f}" for value in numbers.values())
        assert rows[f"{held.name}.json"].endswith(f"| {stated} |")
