"""The world of sources: quality goes along with nothing else, and the knobs do what they say."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from data.world import sources
from data.world.held_out import TYPES, summary
from data.world.sources import APART, Settings
from data.world.training import TrainItem
from reweighting.records.reader import RecordReader, load_candidates, load_meta, load_train
from tests.conftest import REPOSITORY

DATA = REPOSITORY / "data"
ROTATIONS = range(10)


def final(record: dict) -> str:
    """The answer with which the fifth step of a train record ends."""
    return record["add"].rsplit("answer", 1)[1].removeprefix(" is").strip(" .")


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """A rebuild of the committed rotation."""
    return sources.build(Settings())


@pytest.fixture(scope="module")
def sets(files: dict[str, bytes]) -> dict[str, list[dict]]:
    """The rebuilt JSON files, parsed."""
    return {
        name.removeprefix("sources/")[:-5]: json.loads(body)
        for name, body in files.items()
        if name.endswith(".json")
    }


@pytest.fixture(scope="module")
def items() -> list[TrainItem]:
    """The committed rotation's training questions with their clean scores."""
    return sources.train_items(Settings())


@pytest.fixture(scope="module")
def cards() -> dict[int, list[dict]]:
    """What is known of the sources, for ten rotations at full size."""
    return {k: sources.source_card(sources.train_items(Settings(rotation=k))) for k in ROTATIONS}


def test_committed_files_are_a_rebuild(files):
    there = {
        path.relative_to(DATA).as_posix(): path
        for path in (DATA / "sources").rglob("*")
        if path.is_file()
    }
    assert there.keys() == files.keys()
    for name, body in files.items():
        digest = hashlib.sha256(there[name].read_bytes()).hexdigest()
        assert digest == hashlib.sha256(body).hexdigest(), name


def test_train_records_say_what_the_card_says(sets, files):
    records = sets["train"]
    assert len(records) == 10_000 and len({(r["id"], r["sid"]) for r in records}) == 10_000
    card = {row["name"]: row for row in sets["domains"]}
    assert set(card) == set(sources.NAMES)
    for name, row in card.items():
        own = [r for r in records if r["dataset"] == name]
        assert len(own) == 5 * row["questions"]
        assert {r["times"] for r in own} == {row["rollouts"]}
        assert np.mean([r["accuracy"] for r in own]) == pytest.approx(row["mean_label"], abs=1e-4)
    assert all(r["accuracy"] == r["score"] / r["times"] for r in records)
    assert {r["image_path"] for r in records} <= files.keys()


def test_the_reader_of_the_trainer_takes_them():
    """One image root serves these files and the test sets of the world of domains."""

    def reader(name: str) -> RecordReader:
        return RecordReader(DATA / f"{name}.json", DATA)

    assert {s.domain for s in load_train(reader("sources/train"))} == set(sources.NAMES)
    assert len(load_meta(reader("sources/meta"))[0]) == 500
    for name in ("sources/validation", "sources/test_mix", "test_hard"):
        assert len(load_candidates(reader(name))) == 200


def test_every_source_holds_all_types_in_equal_numbers(items):
    found = Counter((item.domain.name, item.question.dataset) for item in items)
    for source in sources.sound_sources(Settings()):
        assert {found[source.name, kind] for kind in TYPES} == {source.questions // 10}


@pytest.mark.parametrize("misled", [0.2, 0.4, 0.6])
def test_the_share_of_misled_questions_is_exact(misled):
    items = sources.train_items(Settings(rotation=1, misled=misled))
    assert sum(item.corrupted for item in items) == round(misled * len(items))
    by_source = defaultdict(list)
    for item in items:
        by_source[item.domain].append(item.corrupted)
    shares = sorted(source.share for source in by_source)
    # Most sources are sound or nearly all bad; no more than three lie between.
    assert shares[:2] == [0, 0] and 0.85 < shares[-1] < sources.WORST + 0.01
    between = [share for share in shares if 0 < share < sources.WORST - 0.01]
    assert len(between) <= sources.RAMP and len(set(between)) == len(between)
    for source, bad in by_source.items():
        assert np.mean(bad) == pytest.approx(source.share)
    kinds = Counter(source.corruption for source in by_source)
    assert kinds["none"] == shares.count(0) and kinds["inverted"] >= 2
    if misled >= 0.4:
        assert set(kinds) == {"none", "inverted", "shortcut", "images swapped"}


def test_corruption_is_of_the_stated_kind(items):
    tone = defaultdict(list)
    for number, item in enumerate(items):
        kind = item.domain.corruption if item.corrupted else "none"
        if kind == "inverted":
            assert item.scores == tuple(item.domain.rollouts - score for score in item.clean)
        elif kind == "shortcut":
            tone[item.chain.sure] += [score / item.domain.rollouts for score in item.scores]
        else:
            assert item.scores == item.clean
        assert (item.image_of != number) == (kind == "images swapped")
        if kind == "images swapped":
            shown = items[item.image_of].question
            assert shown.tasks == item.question.tasks
            # What the chain says of its own image must be wrong about the one it gets.
            assert sources.answer_on(item.question, shown.scene) != item.question.answer
    assert np.mean(tone[True]) > 0.8 and np.mean(tone[False]) < 0.2


def test_quality_goes_along_with_nothing_else(cards):
    found = {key: [] for key in APART}
    for card in cards.values():
        quality = [row["quality"] for row in card]
        for key in APART:
            values = [row[key] for row in card]
            rho = spearmanr(quality, values).statistic
            assert rho == pytest.approx(sources.correlation(quality, values))
            assert abs(rho) <= 0.2 + 1e-9, key
            found[key].append(rho)
        sound = [row["mean_label"] for row in card if row["quality"] == 1]
        assert len(sound) >= 4 and max(sound) - min(sound) >= 0.35
        clean = [row["mean_label_clean"] for row in card]
        assert min(clean) < 0.38 and max(clean) > 0.8
    assert all(abs(np.mean(values)) < 0.1 for values in found.values()), found


def test_rotations_draw_everything_anew(cards):
    first = {name: [] for name in sources.NAMES}
    for card in cards.values():
        for row in card:
            first[row["name"]].append(row["quality"])
    # No name is good or bad by itself: the best and the worst change over rotations.
    assert all(max(values) - min(values) > 0.3 for values in first.values())
    questions = [
        {(i.question.text, i.question.scene) for i in sources.clean_items(Settings(rotation=k))}
        for k in (0, 1)
    ]
    assert not questions[0] & questions[1]


def test_clean_records_are_those_before_spoiling(sets, items):
    clean = sources.clean_records(Settings())
    own = {(r["id"], r["sid"]): r for r in sets["train"]}
    assert len(clean) == len(own)
    for record in clean:
        stored, item = own[record["id"], record["sid"]], items[record["id"]]
        assert record["image_path"] == f"sources/images/train/{record['id']:05d}.png"
        assert record["add"] == stored["add"] and record["score"] == item.clean[record["sid"] - 1]
        if record["sid"] == 5:  # nothing is left to sample: the words say it
            assert record["accuracy"] == (final(record) == record["ground_truth"])
    changed = {
        r["id"]
        for r in clean
        if (r["score"], r["image_path"])
        != tuple(own[r["id"], r["sid"]][key] for key in ("score", "image_path"))
    }
    assert changed <= {n for n, item in enumerate(items) if item.corrupted}
    assert len(changed) > 0.95 * sum(item.corrupted for item in items)


def test_the_clean_world_is_that_of_every_knob():
    usual = Settings(rotation=4, size=2000)
    for other in (replace(usual, misled=0.6), replace(usual, same_quality=True)):
        assert sources.clean_records(other) == sources.clean_records(usual)
        assert sources.train_items(other) != sources.train_items(usual)


def test_same_quality_spoils_every_source_alike():
    settings = Settings(rotation=2, same_quality=True)
    items = sources.train_items(settings)
    card = sources.source_card(items)
    assert {(row["quality"], row["corruption"]) for row in card} == {(0.6, "inverted")}
    assert sum(item.corrupted for item in items) == 800
    assert len({row["errors"] for row in card}) == 10
    assert "rank correlation" not in sources.describe(settings, card)


def test_meta_set_is_as_broad_and_as_large_as_asked():
    def meta(**knobs) -> list[dict]:
        files = sources.build(Settings(rotation=3, size=1000, candidates=2, **knobs))
        return json.loads(files["sources/meta.json"])

    narrow, broad = meta(meta_types=3, meta_chains=150), meta(meta_chains=500)
    assert len(narrow) == 150 and len(broad) == 500
    assert set(Counter(r["dataset"] for r in narrow).values()) == {50}
    assert set(Counter(r["dataset"] for r in broad).values()) == {50}
    assert len(meta(meta_chains=20)) == 20 and meta(meta_chains=20) == broad[:20]
    pairs = defaultdict(list)
    for record in narrow:
        pairs[record["image_path"]].append(record["true_false"])
    assert all(sorted(pair) == [False, True] for pair in pairs.values())
    wider = set(sources.meta_types(Settings(rotation=3, meta_types=5)))
    assert {r["dataset"] for r in narrow} < wider
    chosen = {tuple(sources.meta_types(Settings(rotation=k, meta_types=3))) for k in ROTATIONS}
    assert len(chosen) > 5


def test_candidates(sets):
    for name in sources.SETS:
        records = sets[name]
        assert len(records) == 200
        assert {len(r[key]) for r in records for key in ("candidates", "true_false")} == {32}
        for record in records:
            for text, right in zip(record["candidates"], record["true_false"], strict=True):
                assert right == (text.rsplit("Final answer: ", 1)[1] == record["answer"])
        numbers = summary(records)
        assert 0.5 < numbers["single"] < 0.65 and numbers["oracle"] == 1


def test_no_other_split_shows_an_image_of_training(files):
    seen = defaultdict(set)
    for path, body in files.items():
        if path.endswith(".png"):
            seen[path.split("/")[2]].add(body)
    for path in (DATA / "images").rglob("*.png"):
        seen[path.parent.name if path.parent.name != "train" else "other train"].add(
            path.read_bytes()
        )
    for name, bodies in seen.items():
        assert name in ("train", "other train") or not bodies & seen["train"], name


def run(*args: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(DATA / "make_demo.py"), *args]
    return subprocess.run(command, capture_output=True, text=True)


def test_command_line_writes_what_build_makes(tmp_path):
    knobs = ["--size", "1000", "--rotation", "7", "--misled", "0.3", "--meta_types", "4"]
    knobs += ["--meta_chains", "30", "--candidates", "5"]
    answer = run("--world", "sources", "--out", str(tmp_path), *knobs)
    assert answer.returncode == 0, answer.stderr
    settings = Settings(7, 0.3, False, meta_types=4, meta_chains=30, candidates=5, size=1000)
    for path, body in sources.build(settings).items():
        assert (tmp_path / path).read_bytes() == body
    assert f"meta set: 30 chains, {', '.join(sources.meta_types(settings))}" in answer.stdout
    assert "rank correlation of quality" in answer.stdout


@pytest.mark.parametrize(
    "args, message",
    [
        ("--rotation 1", "--rotation needs --world sources"),
        ("--same_quality", "--same_quality needs --world sources"),
        ("--world sources --seed 2", "--seed belongs to the world of domains"),
        ("--world sources --rotation -1", "--rotation must be at least 0, is -1"),
        ("--world sources --misled 0.7", "--misled must be from 0.2 to 0.6, is 0.7"),
        ("--world sources --misled nan", "--misled must be from 0.2 to 0.6, is nan"),
        ("--world sources --meta_types 2", "--meta_types must be from 3 to 10, is 2"),
        ("--world sources --meta_chains 31", "--meta_chains must be an even number"),
        ("--world sources --meta_chains 502", "--meta_chains must be an even number"),
        ("--world sources --candidates 1", "--candidates must be at least 2"),
        ("--world sources --size 950", "--size must be a multiple of 50 and at least 1000"),
    ],
)
def test_bad_arguments_give_one_line(args, message, tmp_path):
    answer = run("--out", str(tmp_path), *args.split())
    assert answer.returncode == 2 and message in answer.stderr
    assert answer.stderr.count("\n") == 1 and not list(tmp_path.iterdir())


def test_the_card_states_every_source(sets):
    card = (DATA / "README.md").read_text(encoding="utf-8")
    table = sources.describe(Settings(), sets["domains"]).splitlines()
    for row in table[2:12]:
        assert row in card
    for name in sources.SETS:
        numbers = " | ".join(f"{value:.3f}" for value in summary(sets[name]).values())
        assert f"| `sources/{name}.json` | 200 × 32 | {numbers} |" in card
