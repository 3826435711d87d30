"""Which images a record names: none, one or several; what is wrong with them is named."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image

from reweighting.records.chains import chains_of, questions_of
from reweighting.records.problems import DataError
from reweighting.records.reader import (
    RecordReader,
    load_candidates,
    load_meta,
    load_questions,
    load_train,
)

TRAIN = {"input": "Which?", "add": "Step 1: a", "dataset": "d", "accuracy": 0.5}
META = {"input": "Which?\n\nStep 1: a", "true_false": True}
CANDIDATES = {"question": "Which?", "candidates": ["Step 1: a"]}
CONVERSATION = {
    "conversations": [
        {"from": "human", "value": "Which?"},
        {"from": "human", "value": "Step 1: a"},
        {"from": "gpt", "value": "+"},
    ]
}
LOADERS = {
    "train": (load_train, TRAIN),
    "conversation": (load_train, CONVERSATION),
    "meta": (lambda reader: load_meta(reader)[0], META),
    "candidates": (load_candidates, CANDIDATES),
}


def reader(folder: Path, *records: dict) -> RecordReader:
    for name in ("a.png", "b.png"):
        Image.effect_noise((56, 84), 60).convert("RGB").save(folder / name)
    (folder / "bad.png").write_bytes(b"no image")
    (folder / "records.json").write_text(json.dumps(list(records)))
    return RecordReader(str(folder / "records.json"), str(folder))


@pytest.mark.parametrize("kind", LOADERS)
def test_a_record_names_none_one_or_several_in_order(tmp_path, kind):
    load, record = LOADERS[kind]
    values = [None, "", [], "a.png", ["a.png"], ["b.png", "a.png"], ["a.png", "a.png"]]
    found = reader(tmp_path, record, *(record | {"image_path": value} for value in values))
    names = [[Path(image).name for image in sample.images] for sample in load(found)]
    assert names == [
        *([], [], [], []),
        *(["a.png"], ["a.png"], ["b.png", "a.png"], ["a.png", "a.png"]),
    ]
    assert not found.problems


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("   ", "is empty"),
        (7, "must be text, is 7"),
        (False, "must be text, is false"),
        ({}, "must be text, is {}"),
        (["a.png", ""], "image 2 is empty"),
        (["a.png", None], "image 2 must be text, is null"),
        ([["a.png"]], 'image 1 must be text, is ["a.png"]'),
        (["a.png", "../x.png"], "image 2 ../x.png lies outside the image root"),
        (["a.png", "http://a.b/c.png"], "image 2 is a URL (http://a.b/c.png)"),
        (["a.png", "b\0.png"], r"image 2 holds a NUL character: b\x00.png"),
        (["a.png", "none.png"], "none.png does not exist"),
        (["bad.png", "a.png"], "bad.png cannot be read"),
    ],
)
@pytest.mark.parametrize("kind", LOADERS)
def test_what_is_wrong_with_an_image_is_named(tmp_path, kind, value, expected):
    load, record = LOADERS[kind]
    found = reader(tmp_path, record | {"image_path": "a.png"}, record | {"image_path": value})
    with suppress(DataError):
        load(found)
    [said] = found.all_problems()
    assert said.startswith(f"{found.name}: record 2: field 'image_path': ") and expected in said


@pytest.mark.parametrize("name", ["image", "images", "imagepath", "img", "imgae_path", "Picture"])
@pytest.mark.parametrize("kind", ["train", "meta", "candidates"])
def test_a_field_that_is_mis_spelt_makes_no_text_of_a_record(tmp_path, kind, name):
    load, record = LOADERS[kind]
    found = reader(tmp_path, record, record | {name: "a.png"})
    with suppress(DataError):
        load(found)
    kind = f"is missing, but there is '{name}'; null says that a record has no image"
    assert found.all_problems() == [f"{found.name}: record 2: field 'image_path': {kind}"]
    found = reader(tmp_path, record | {name: "a.png", "image_path": None}, record | {name: None})
    assert [sample.images for sample in load(found)] == [(), ()] and not found.problems


def test_other_fields_are_no_images(tmp_path):
    record = TRAIN | {
        "id": "a",
        "sid": 1,
        "ground_truth": "x",
        "page": 3,
        "source": "s",
        "imago": 0,
    }
    found = reader(tmp_path, record)
    assert load_train(found)[0].images == () and not found.problems


def test_conversations_take_either_name(tmp_path):
    records = [{"image": "a.png"}, {"image": None, "image_path": "a.png"}, {"image": ""}]
    found = reader(tmp_path, *(CONVERSATION | record for record in records))
    assert [len(sample.images) for sample in load_train(found)] == [1, 1, 0]
    found = reader(tmp_path, CONVERSATION | {"images": ["a.png"]})
    load_train(found)
    assert "is missing, but there is 'images'" in found.all_problems()[0]


def test_a_question_for_a_reasoner_has_one_image(tmp_path):
    question = {"question": "Which?", "answer": "a", "dataset": "d"}
    values = ["a.png", ["a.png"], ["a.png", "b.png"], None]
    found = reader(tmp_path, *(question | {"image_path": value} for value in values))
    with pytest.raises(DataError):
        load_questions(found)
    places = [f"{found.name}: record {n}: field 'image_path': must name one image" for n in (3, 4)]
    assert found.all_problems() == [f"{places[0]}, names 2", f"{places[1]}, names 0"]


def test_images_tell_chains_and_questions_apart(tmp_path):
    images = [None, "a.png", ["a.png", "b.png"], ["b.png", "a.png"]]
    longer = TRAIN | {"add": "Step 1: a\nStep 2: b"}
    records = [record | {"image_path": image} for image in images for record in (TRAIN, longer)]
    assert chains_of(load_train(reader(tmp_path, *records))) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    records = [META | {"image_path": image} for image in images * 2]
    questions = questions_of(load_meta(reader(tmp_path, *records))[0])
    assert questions == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_a_note_counts_the_records_without_an_image(tmp_path):
    found = reader(tmp_path, TRAIN, TRAIN | {"image_path": "a.png"}, TRAIN | {"image_path": []})
    assert found.text_only(load_train(found)) == (
        f"{found.name}: 2 of 3 records name no image: text alone"
    )
    found = reader(tmp_path, TRAIN | {"image_path": "a.png"})
    assert found.text_only(load_train(found)) is None
