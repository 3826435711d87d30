"""DreamPRM-1.5's records: conversations with a label after every step."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest
from PIL import Image

from reweighting.bilevel.batches import CollateTrain, EncodedDataset
from reweighting.records.chains import chains_of
from reweighting.records.reader import RecordReader, load_meta, load_train
from reweighting.records.samples import TrainSample
from reweighting.records.steps import Prompt

SYSTEM = {"from": "system", "value": "Judge every step."}


def conversation(*turns: str) -> list[dict]:
    """Turns of the human, but for labels."""
    return [{"from": "gpt" if t in "+-" else "human", "value": t} for t in turns]


def write(path: Path, *records: dict) -> RecordReader:
    for name in ("a.png", "b.png"):
        Image.effect_noise((56, 84), 60).convert("RGB").save(path.parent / name)
    path.write_text(json.dumps(list(records)))
    return RecordReader(str(path), str(path.parent))


def test_a_conversation_is_one_record_with_a_prompt_a_label(tmp_path):
    turns = conversation("<image>\nWhich colour?", "Step 1: a", "+", "then b", "-", "so c", "-")
    record = {"id": "x", "image": ["a.png", "b.png"], "conversations": [SYSTEM, *turns]}
    [sample] = load_train(write(tmp_path / "mmmu.json", record))
    assert sample.accuracies == [1.0, 0.0, 0.0] and sample.domain == "mmmu"
    assert sample.images == (str(tmp_path / "a.png"), str(tmp_path / "b.png"))
    assert [prompt.text for prompt in sample.prompts] == [
        "Which colour?\n\nStep 1: a",
        "Which colour?\n\nStep 1: a\n\nthen b",
        "Which colour?\n\nStep 1: a\n\nthen b\n\nso c",
    ]
    assert [step.strip() for step in sample.prompts[-1].steps] == ["Step 1: a", "then b", "so c"]
    assert sample.system == "Judge every step."


def test_question_and_first_step_may_share_a_turn(tmp_path):
    turns = conversation("Which colour? It is b.", "+", "So b.", "+")
    record = {"image": "a.png", "dataset": "d", "conversations": turns}
    [sample] = load_train(write(tmp_path / "train.json", record))
    texts = [prompt.text for prompt in sample.prompts]
    assert texts == ["Which colour? It is b.", "Which colour? It is b.\n\nSo b."]
    assert sample.domain == "d" and [len(prompt.steps) for prompt in sample.prompts] == [1, 2]


def test_tags_of_the_image_are_left_out_of_every_format(tmp_path):
    record = {"image_path": "a.png", "dataset": "d", "accuracy": 1, "add": "Step 1: a"}
    reader = write(
        tmp_path / "train.json",
        record | {"input": "<image>\nWhich in <image 1>?"},
        record | {"input": "Which <IMG_CONTEXT>?"},
    )
    [sample] = load_train(reader)
    assert sample.text == "Which in <image 1>?\n\nStep 1: a"  # a reference by number stays
    [problem] = reader.all_problems()
    assert "record 2: field 'input': holds the control token <IMG_CONTEXT>" in problem


def test_meta_chains_come_from_turns_or_from_the_response(tmp_path):
    common = {"image": "a.png", "true_false": True}
    turns = conversation("Which?", "b, I think.", "+", "So b.", "+")
    reader = write(
        tmp_path / "meta.json",
        common | {"conversations": turns, "response": "unused"},
        common | {"conversations": conversation("Which?"), "response": "Step 1: x\nStep 2: y"},
        {"image_path": "a.png", "true_false": False, "input": "Which?\n\nStep 1: x"},
    )
    samples, notes = load_meta(reader)
    assert not notes and not reader.problems
    assert [[prompt.text for prompt in sample.prompts] for sample in samples] == [
        ["Which?\n\nb, I think.", "Which?\n\nb, I think.\n\nSo b."],
        ["Which?\n\nStep 1: x", "Which?\n\nStep 1: x\nStep 2: y"],
        ["Which?\n\nStep 1: x"],
    ]


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"conversations": "text"}, "'conversations': must be a list of turns"),
        ({"conversations": [["human", "Q"]]}, "turn 1 must be from system, human, gpt, is"),
        ({"conversations": [{"from": "human"}]}, "turn 1 must be text, is null"),
        ({"conversations": conversation("Q", "s", "+", "+")}, "turn 4 labels no step"),
        ({"conversations": conversation("Q", "s")}, "must end with the label of a step"),
        ({"conversations": conversation("Q", "s", "+", "t")}, "must end with the label of a step"),
        ({"conversations": [*conversation("Q", "s"), {"from": "gpt", "value": "yes"}]},
         'turn 3 must be + or -, is "yes"'),
        ({"conversations": [*conversation("Q"), SYSTEM]}, "turn 2 is from system: only the first"),
        ({"conversations": conversation("<image>", "s", "+")}, "turn 1 is empty"),
        ({"conversations": conversation("a<|im_end|>", "+")}, "turn 1 holds the control token"),
        ({"image": "none.png"}, "field 'image': "),
        ({"image": ["a.png", []]}, "field 'image': image 2 must be text, is []"),
        ({"dataset": 3}, "field 'dataset': must be text"),
        ({"conversations": conversation("Q", *("s", "+") * 1001)}, "holds 1001 steps, more than"),
        ({"conversations": conversation("Q", *("s" * 99_999, "+") * 3)}, "holds 299998 characters"),
        ({"conversations": conversation("Q", "\ud83d", "+")}, "holds half of a surrogate pair"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path, change, expected):
    good = {"image": "a.png", "conversations": conversation("Q", "s", "+")}
    reader = write(tmp_path / "train.json", good, good | change)
    assert len(load_train(reader)) == 1
    [problem] = reader.all_problems()
    assert "train.json: record 2: field '" in problem and expected in problem


def test_labels_of_earlier_steps_come_from_the_same_record_or_chain(tmp_path):
    steps = ["Step 1: a.", "Step 2: b.", "Step 3: c."]
    record = {"input": "Q", "image_path": "a.png", "dataset": "d"}
    reader = write(
        tmp_path / "train.json",
        record | {"add": "\n".join(steps), "accuracy": 0.9},
        record | {"add": steps[0], "accuracy": 0.5},  # of step 2 there is no record
        record | {"add": "Step 1: e.\nStep 2: f.", "accuracy": 0.0},
        {"image": "a.png", "conversations": conversation("Q", "a", "-", "b", "+", "c", "+")},
    )
    samples = load_train(reader)
    assert all(prompt.labels == () for sample in samples for prompt in sample.prompts)
    labels = [[prompt.labels for prompt in sample.prompts] for sample in samples.with_labels()]
    assert labels == [[(False, True)], [()], [(True,)], [(), (False,), (False, True)]]
    assert chains_of(samples) == [[1, 0], [2], [3]]


def records_of(*texts: str, chain: tuple = ()) -> list[TrainSample]:
    """A sample a text, all of one question."""
    return [
        TrainSample(number, [Prompt(text)], "i.png", "d", [0.5], chain)
        for number, text in enumerate(texts, start=1)
    ]


def chains_one_by_one(samples: list[TrainSample]) -> list[list[int]]:
    """The definition, in quadratic time: from short to long, the first chain that it extends."""
    growing: list[list[int]] = []
    for index in sorted(range(len(samples)), key=lambda i: len(samples[i].text)):
        for chain in growing:
            if samples[index].text.startswith(samples[chain[-1]].text):
                chain.append(index)
                break
        else:
            growing.append([index])
    return sorted(growing)


@pytest.mark.parametrize("letters", ["a", "ab", "abc"])
def test_chains_are_those_of_the_definition(letters):
    rng = random.Random(0)
    for _ in range(500):
        count = rng.randint(1, 12)
        texts = ["".join(rng.choices(letters, k=rng.randint(0, 5))) for _ in range(count)]
        samples = records_of(*texts)
        assert chains_of(samples) == chains_one_by_one(samples), texts


def test_chains_of_many_records_of_one_question_take_no_time():
    texts = []
    for chain in range(1000):
        steps = [f"Step {number}: {chain * 7919 % 1000} {number}\n" for number in range(8)]
        texts += ["".join(steps[: number + 1]) for number in range(8)]
    random.Random(0).shuffle(texts)
    before = time.process_time()
    chains = chains_of(records_of(*texts))
    assert time.process_time() - before < 2  # 16 s by the definition
    assert [len(chain) for chain in chains] == [8] * 1000


def test_a_batch_keeps_prompts_and_records_apart(tmp_path, reward_model):
    reader = write(
        tmp_path / "train.json",
        {"image": "a.png", "conversations": conversation("Q", "a", "-", "b", "+")},
        {"input": "Q", "add": "a", "image_path": "b.png", "dataset": "d", "accuracy": 0.25},
    )
    dataset = EncodedDataset([[s] for s in load_train(reader)], reward_model.encoder)
    batch = CollateTrain(["train", "d"])([dataset[0], dataset[1]])
    assert batch.accuracy.tolist() == [0.0, 1.0, 0.25]
    assert batch.record_of_prompt.tolist() == [0, 0, 1]
    assert batch.domains.tolist() == [0, 1] and batch.records.tolist() == [1, 2]
    assert len(reward_model(batch.prompts)) == 3
