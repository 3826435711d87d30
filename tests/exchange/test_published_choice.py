"""Drawing a part of a published set, and holding questions out of training."""

from __future__ import annotations

import tracemalloc
from collections import Counter

import pytest
from PIL import Image

from reweighting.evaluate.layouts import StepReader, load_told_steps
from reweighting.exchange import __main__ as exchange
from reweighting.exchange.published.chains import Chain, Label, candidates_record, step_correct
from reweighting.records.reader import RecordReader, load_candidates
from reweighting.system.record_files import read_records
from tests.exchange.layouts import STEPS, convert, mmpr, visualprm_raw, write_lines

RIGHT, WRONG, OPEN = (16, 16, 16), (16, 0, 0), (16, 16, 8)


def raw(folder, questions: int, outcomes=(RIGHT, RIGHT, WRONG, OPEN), domain: str = "a", first=0):
    """A file with a chain of every outcome for each question; every chain has its own text."""
    rows = [
        visualprm_raw(f"Question {q}?", right, [f"Step 1: {domain}{q}{n}.", *STEPS[1:]])
        for q in range(first, first + questions)
        for n, right in enumerate(outcomes)
    ]
    return write_lines(folder / f"{domain}.jsonl", *rows)


def run(source, tmp_path, *flags: str) -> list[dict]:
    return convert("from-visualprm-raw", source, tmp_path / "out" / "train.json", *flags)


def held_out(tmp_path, name: str) -> list[dict]:
    return read_records(tmp_path / "out" / f"train_{name}.json")


def chains(records: list[dict]) -> Counter:
    """Chains of each domain."""
    return Counter({record["id"]: record["dataset"] for record in records}.values())


def test_domains_are_those_that_are_named(tmp_path, capsys):
    raw(tmp_path / "set", 2, domain="a")
    raw(tmp_path / "set", 3, domain="b")
    records = run(tmp_path / "set", tmp_path, "--domains", "b", "c")
    assert chains(records) == {"b": 12}
    assert "set: no row of the domain c" in capsys.readouterr().err


def test_rows_of_each_domain_and_of_all_are_drawn(tmp_path):
    raw(tmp_path / "set", 5, domain="a")
    raw(tmp_path / "set", 1, domain="b")
    records = run(tmp_path / "set", tmp_path, "--per_domain", "6")
    assert chains(records) == {"a": 6, "b": 4}
    assert [record["id"] for record in records[::2]] == list(range(10))
    again = run(tmp_path / "set", tmp_path, "--per_domain", "6")
    other = run(tmp_path / "set", tmp_path, "--per_domain", "6", "--seed", "1")
    assert records == again != other
    assert chains(run(tmp_path / "set", tmp_path, "--limit", "3")).total() == 3


def test_held_out_questions_are_in_one_set_only_and_balanced(tmp_path, capsys):
    source = raw(tmp_path, 20)
    train = run(source, tmp_path, "--held_out", "8")
    meta, validation = held_out(tmp_path, "meta"), held_out(tmp_path, "validation")
    assert Counter(record["true_false"] for record in meta) == {True: 4, False: 4}
    flags = [flag for record in validation for flag in record["true_false"]]
    assert Counter(flags) == {True: 4, False: 4}
    questions = [
        {record["input"] for record in train},
        {record["input"] for record in meta},
        {record["question"] for record in validation},
    ]
    assert [len(part) for part in questions] == [12, 4, 4]
    assert len(set.union(*questions)) == 20
    out = capsys.readouterr().out.splitlines()
    assert out[1:] == [
        f"8 records with 8 chains written to {tmp_path / 'out' / 'train_meta.json'}",
        f"4 records with 8 chains written to {tmp_path / 'out' / 'train_validation.json'}",
    ]


def test_a_question_that_two_domains_share_is_held_out_of_both(tmp_path):
    raw(tmp_path / "set", 8, domain="a")
    raw(tmp_path / "set", 8, domain="b")
    train = run(tmp_path / "set", tmp_path, "--held_out", "4")
    others = {record["input"] for record in held_out(tmp_path, "meta")}
    others |= {record["question"] for record in held_out(tmp_path, "validation")}
    assert not others & {record["input"] for record in train}
    assert chains(train)["a"] == chains(train)["b"] == 4 * (8 - len(others))


def test_the_same_words_about_another_image_are_another_question(tmp_path):
    rows = [
        visualprm_raw("What is it?", right, image=f"{image}.png")
        for image in range(6)
        for right in (RIGHT, WRONG)
    ]
    train = run(write_lines(tmp_path / "a.jsonl", *rows), tmp_path, "--held_out", "2")
    images = {record["image_path"] for record in train}
    assert len(images) == 4
    assert held_out(tmp_path, "meta")[0]["image_path"] not in images


def test_if_no_question_has_both_the_meta_set_takes_pairs_of_questions(tmp_path, capsys):
    raw(tmp_path / "set", 6, (RIGHT,), "a")
    raw(tmp_path / "set", 6, (WRONG,), "b", first=6)
    train = run(tmp_path / "set", tmp_path, "--held_out", "4")
    meta = held_out(tmp_path, "meta")
    assert Counter(record["true_false"] for record in meta) == {True: 2, False: 2}
    assert not {record["input"] for record in meta} & {record["input"] for record in train}
    assert "the validation set gets 0 chains: there are no more" in capsys.readouterr().err
    assert not (tmp_path / "out" / "train_validation.json").exists()


def test_if_all_questions_are_held_out_nothing_is_written(tmp_path, capsys):
    source = raw(tmp_path, 2)
    argv = ["from-visualprm-raw", "--source", str(source), "--held_out", "2"]
    assert exchange.main([*argv, "--output", str(tmp_path / "train.json")]) == 2
    said = capsys.readouterr().err
    assert said == f"error: {source}: all rows are held out, nothing is written\n"
    assert not list(tmp_path.glob("train*"))


def test_pairs_are_drawn_together(tmp_path):
    rows = [mmpr(chosen=f"Step 1: {n}.", rejected=f"Step 1: not {n}.") for n in range(9)]
    for number, row in enumerate(rows):
        row["question"] += str(number)
    source = write_lines(tmp_path / "pairs.jsonl", *rows)
    flags = ["--limit", "3", "--held_out", "4"]
    meta = convert("from-mmpr", source, tmp_path / "out" / "train.json", *flags)
    assert Counter(record["true_false"] for record in meta) == {True: 3, False: 3}
    assert len({record["input"] for record in meta}) == 3
    validation = held_out(tmp_path, "validation")
    assert [sorted(record["true_false"]) for record in validation] == [[False, True]] * 2


def test_validation_can_be_read_as_candidates(tmp_path):
    Image.new("RGB", (28, 28)).save(tmp_path / "7.png")
    rows = [visualprm_raw("Sum?", right, image="7.png") for right in (RIGHT, WRONG)]
    rows += [row | {"question_orig": "Other?"} for row in rows]
    rows.append(visualprm_raw("Third?", image="7.png"))
    run(write_lines(tmp_path / "a.jsonl", *rows), tmp_path, "--held_out", "2")
    reader = RecordReader(str(tmp_path / "out" / "train_validation.json"), str(tmp_path))
    [sample] = load_candidates(reader)
    assert sorted(sample.true_false) == [False, True] and sample.answer == "8"


def test_validation_says_which_steps_are_right(tmp_path):
    Image.new("RGB", (28, 28)).save(tmp_path / "7.png")
    source = write_lines(
        tmp_path / "a.jsonl",
        *(visualprm_raw("Sum?", right, image="7.png") for right in ((16, 1, 16), (16, 0, 0))),
        *(visualprm_raw("Other?", right, image="7.png") for right in ((9, 0, 16), (0, 0, 0))),
        visualprm_raw("Third?", image="7.png"),
    )
    run(source, tmp_path, "--held_out", "2")
    file = tmp_path / "out" / "train_validation.json"
    [record] = read_records(file)
    right = {"Sum?": [[True, False], [True, True]], "Other?": [[False, False], [True, False]]}
    assert sorted(record["step_correct"]) == right[record["question"]]
    layout, [found] = load_told_steps(StepReader(str(file), str(tmp_path)))
    assert layout == "candidates" and found.labels == record["step_correct"]


def test_a_step_that_no_label_ends_with_is_not_judged():
    label = Label(0.5)
    text = "<think>Well.</think>Step 1: a.\nStep 2: b.\nStep 3: c.\nFinal answer: d"
    ends = [text.index(mark) for mark in ("\nStep 2", "\nFinal")]
    prefixes = [(n, text[:end], label) for n, end in enumerate(ends, start=1)]
    chain = Chain("d", "Q", (), text, prefixes, True)
    assert step_correct(chain) == [True, None, True]
    assert "step_correct" not in candidates_record([Chain("d", "Q", (), text, [], True)])


@pytest.mark.parametrize("flags", [[], ["--per_domain", "100000", "--held_out", "2"]])
def test_memory_does_not_grow_with_the_file(flags, tmp_path):
    """What stays in memory of a chain, here of 20 kB, is a few bytes."""
    long = ["Step 1: " + "word " * 4000, *STEPS[1:]]
    rows = [visualprm_raw(f"Question {n}?", RIGHT, long) for n in range(100)]
    source = write_lines(tmp_path / "a.jsonl", *rows)
    argv = ["from-visualprm-raw", "--source", str(source), "--output", str(tmp_path / "t.json")]
    tracemalloc.start()
    assert exchange.main([*argv, *flags]) == 0
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000 < source.stat().st_size / 4
