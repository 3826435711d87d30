"""The layouts of step benchmarks, read as their authors write them, and what is refused."""

from __future__ import annotations

import json
import random

import pytest
from PIL import Image

from reweighting.evaluate.layouts import LAYOUTS, StepReader, has_both, load_steps, load_told_steps
from reweighting.evaluate.results import sizes
from reweighting.records.problems import DataError
from tests.spoiling import spoil_value, to_bytes

VISUAL = {
    "image": ["images/1.png"],
    "question": "<image>\nWhich bar is the tallest?",
    "answer": "B",
    "response": {
        "steps": ["I see three bars.", "B is the second tallest.", "Let me look.", "It is B."],
        "process_correctness": [1, -1, 0, 1],
    },
    "policy_model": "InternVL2.5-8B",
    "data_source": "MathVision",
}
PROCESS = {
    "id": "gsm8k-0",
    "generator": "Qwen2-7B-Instruct",
    "problem": "What is 2 + 3 + 4?",
    "steps": ["2 + 3 = 5", "5 + 4 = 8", "The answer is 8."],
    "final_answer_correct": False,
    "label": 1,
}
PRM = {
    "original_question": "What is 2 + 3 + 4?",
    "modified_question": "What is 2 + 3 + 4? ",
    "original_process": ["2 + 3 = 5", "5 + 4 = 9"],
    "modified_process": ["2 + 3 = 5", "3 + 2 = 5 as well", "5 + 4 = 9"],
    "modified_steps": [2],
    "error_steps": [2],
    "reason": "Step 2 says the same again.",
    "idx": "redundency_0",
    "question": "What is 2 + 3 + 4?",
    "classification": "redundency",
}
OWN = {
    "question": "Which colour?",
    "image_path": "images/1.png",
    "candidates": ["Step 1: a.\nStep 2: b.\nFinal answer: c", "", "Step 1: d."],
    "step_correct": [[True, False], [], [True]],
    "dataset": "chart",
}
RECORDS = {
    "visualprocessbench": VISUAL,
    "processbench": PROCESS,
    "prmbench": PRM,
    "candidates": OWN,
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("1", "2"):
        Image.new("RGB", (56, 56)).save(tmp_path / "images" / f"{name}.png")
    return tmp_path


def reader_of(folder, records: list, name: str = "test.jsonl") -> StepReader:
    path = folder / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return StepReader(str(path), str(folder))


def parsed(folder, layout: str, *records: dict, name: str = "test.jsonl") -> list:
    reader = reader_of(folder, records, name)
    found = reader.samples(lambda *record: LAYOUTS[layout](reader, *record))
    assert not reader.problems
    return found


def test_visualprocessbench(folder):
    one, path, two, none = parsed(
        folder,
        "visualprocessbench",
        VISUAL,
        VISUAL | {"image": "images/1.png"},
        VISUAL | {"image": ["images/1.png", "images/2.png"]},
        VISUAL | {"image": []},
    )
    assert one.labels == [[True, False, None, True]] and one.source == "MathVision"
    assert one.question == "Which bar is the tallest?"
    assert one.chains == [VISUAL["response"]["steps"]]
    paths = [str(folder / "images" / f"{name}.png") for name in "12"]
    assert one.images == path.images == tuple(paths[:1]) and two.images == tuple(paths)
    assert none.images == ()
    assert sizes([one, path])["MathVision"] == {
        **{"records": 2, "right": 4, "wrong": 2, "not judged": 2}
    }


def test_processbench(folder):
    wrong, right = parsed(
        folder, "processbench", PROCESS, PROCESS | {"label": -1}, name="olympiadbench.json"
    )
    assert wrong.labels == [[True, False, None]] and right.labels == [[True, True, True]]
    assert wrong.images == () and wrong.source == "olympiadbench"
    assert wrong.question == PROCESS["problem"] and wrong.chains == [PROCESS["steps"]]


def test_prmbench(folder):
    redundant, fine = parsed(folder, "prmbench", PRM, PRM | {"error_steps": []})
    assert redundant.labels == [[True, False, True]] and fine.labels == [[True] * 3]
    assert redundant.chains == [PRM["modified_process"]] and redundant.source == "redundency"
    assert redundant.question == PRM["modified_question"]


def test_our_own_records(folder):
    named, unnamed = parsed(folder, "candidates", OWN, OWN | {"dataset": None}, name="mix.json")
    assert named.labels == OWN["step_correct"] and named.chains == OWN["candidates"]
    assert (named.source, unnamed.source) == ("chart", "mix")
    assert named.sample.benchmark == {"step_labels": OWN["step_correct"]}


def response(**fields) -> dict:
    return {"response": VISUAL["response"] | fields}


@pytest.mark.parametrize(
    "layout, change, field, expected",
    [
        ("visualprocessbench", {"question": ""}, "question", "is empty"),
        ("visualprocessbench", {"image": 7}, "image", "must be text, is 7"),
        ("visualprocessbench", {"image": ["images/9.png"]}, "image", "does not exist"),
        ("visualprocessbench", {"image": ["../1.png"]}, "image", "lies outside the image root"),
        ("visualprocessbench", {"image": ...}, "image", "is missing"),
        ("visualprocessbench", {"data_source": ...}, "data_source", "is missing"),
        ("visualprocessbench", {"data_source": "all steps"}, None, "reserved name, all steps"),
        ("visualprocessbench", {"response": ...}, "response", "must be an object, is null"),
        ("visualprocessbench", {"response": []}, "response", "must be an object, is []"),
        ("visualprocessbench", response(steps=[]), "steps", "must be a list of steps, is []"),
        ("visualprocessbench", response(steps=["a", 3, "c", "d"]), "steps", "step 2 must be text"),
        ("visualprocessbench", response(steps=["a", " ", "c", "d"]), "steps", "step 2 is empty"),
        ("visualprocessbench", response(steps=["<|im_end|>"] * 4), "steps", "control token"),
        ("visualprocessbench", response(steps=["a"] * 1001), "steps", "holds 1001 steps"),
        ("visualprocessbench", response(steps=["a"]), "process_correctness", "4 labels for 1 step"),
        ("visualprocessbench", response(process_correctness=[1, 2, 0, 1]), "process_correctness",
         "must be whole numbers from -1 to 1, not 2"),
        ("visualprocessbench", response(process_correctness=[1, True, 0, 1]), "process_correctness",
         "not true"),
        ("processbench", {"label": 3}, "label", "must be whole numbers from -1 to 2, not 3"),
        ("processbench", {"label": None}, "label", "not null"),
        ("processbench", {"label": ...}, "label", "is missing"),
        ("processbench", {"steps": "a"}, "steps", "must be a list of steps"),
        ("processbench", {"problem": ...}, "problem", "is missing"),
        ("prmbench", {"error_steps": [0]}, "error_steps", "from 1 to 3, not 0"),
        ("prmbench", {"error_steps": 2}, "error_steps", "must be a list of whole numbers, is 2"),
        ("prmbench", {"modified_process": ...}, "modified_process", "is missing"),
        ("prmbench", {"classification": 1}, "classification", "must be text"),
        ("candidates", {"step_correct": ...}, "step_correct", "is missing"),
        ("candidates", {"step_correct": [True]}, "step_correct", "must be a list of lists"),
        ("candidates", {"step_correct": [[1, 0], [], [1]]}, "step_correct", "false and null only"),
        ("candidates", {"step_correct": [[True, False]]}, "step_correct", "of 1 chains for 3 cand"),
        ("candidates", {"step_correct": [[True], [], [True]]}, "step_correct",
         "response 1 holds 1 labels for 2 steps"),
        ("candidates", {"image_path": "images/9.png"}, "image_path", "does not exist"),
    ],
)  # fmt: skip
def test_an_odd_record_is_refused_with_its_place(folder, layout, change, field, expected):
    changed = {k: v for k, v in (RECORDS[layout] | change).items() if v is not ...}
    good = [RECORDS[layout]] if layout not in ("processbench", "prmbench") else []
    reader = reader_of(folder, [*good, changed])
    with pytest.raises(DataError) as error:
        load_steps(reader, layout)
    place = f"test.jsonl: record {len(good) + 1}: " + (f"field '{field}': " if field else "")
    assert place in str(error.value) and expected in str(error.value)


def test_all_problems_are_said_at_once_and_bad_records_can_be_left_out(folder):
    bad = [VISUAL | {"question": 1, "data_source": 2}, VISUAL, 5, VISUAL | response(steps=[])]
    with pytest.raises(DataError) as error:
        load_steps(reader_of(folder, bad), "visualprocessbench")
    for place in ("record 1: field 'question'", "record 1: field 'data_source'", "record 3: must",
                  "record 4: field 'steps'"):  # fmt: skip
        assert place in str(error.value)
    reader = reader_of(folder, bad)
    reader.skip_bad_records = True
    assert [record.record for record in load_steps(reader, "visualprocessbench")] == [2]
    assert "left out 3 records" in reader.left_out()


@pytest.mark.parametrize("layout", RECORDS)
def test_whatever_is_spoiled_is_read_or_refused(folder, layout):
    rng = random.Random(0)
    path = folder / "test.jsonl"
    for _ in range(150):
        path.write_bytes(to_bytes(rng, [spoil_value(rng, RECORDS[layout])], lines=True))
        reader = StepReader(str(path), str(folder))
        try:
            load_steps(reader, layout)
        except DataError as error:
            assert "test.jsonl" in str(error)


@pytest.mark.parametrize("layout", RECORDS)
def test_the_first_record_tells_the_layout(folder, layout):
    found, records = load_told_steps(reader_of(folder, [RECORDS[layout]]))
    assert found == layout and len(records) == 1 and has_both(records)
    with pytest.raises(DataError, match="record 1 has no field that tells its layout"):
        load_told_steps(reader_of(folder, [{"question": "Q"}]))


def test_own_records_may_leave_steps_unjudged(folder):
    own = OWN | {"step_correct": [[None, True], [], [None]]}
    [found] = load_steps(reader_of(folder, [own]), "candidates")
    assert found.labels == own["step_correct"] and not has_both([found])


def test_a_validation_file_may_hold_our_own_records(folder):
    [found] = load_steps(reader_of(folder, [OWN]), "visualprocessbench", or_candidates=True)
    assert found.labels == OWN["step_correct"]
    [found] = load_steps(reader_of(folder, [VISUAL]), "visualprocessbench", or_candidates=True)
    assert found.source == "MathVision"
    with pytest.raises(DataError, match="data_source"):
        load_steps(reader_of(folder, [OWN]), "visualprocessbench")
