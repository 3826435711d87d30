"""Rows of published sets become records, and odd rows are refused with their place."""

from __future__ import annotations

import json

import pyarrow
import pyarrow.parquet
import pytest

from reweighting.exchange import __main__ as exchange
from tests.exchange.layouts import (
    STEPS,
    convert,
    math_shepherd,
    mm_prm,
    mmpr,
    prm800k,
    prm800k_step,
    refusals,
    visualprm_chat,
    visualprm_raw,
    vl_prm300k,
    write_lines,
)

TEXT = "\n\n".join(STEPS[:2])  # of both steps


def accuracies(records: list[dict]) -> list[float]:
    return [record["accuracy"] for record in records]


def test_raw_visualprm_keeps_counts_and_leaves_out_the_final_answer(tmp_path, capsys):
    source = write_lines(tmp_path / "chartqa_train.jsonl", visualprm_raw())
    first, second = convert("from-visualprm-raw", source, tmp_path / "train.json")
    assert first == {
        "id": 0,
        "sid": 1,
        "input": "How much?",
        "add": STEPS[0],
        "ground_truth": "8",
        "image_path": "VisualPRM400K-v1.1-Raw/chartqa/7.png",
        "dataset": "chartqa_train",
        "score": 16,
        "times": 16,
        "accuracy": 1.0,
    }
    assert second["add"] == TEXT and second["accuracy"] == 0.75 and second["score"] == 12
    out = capsys.readouterr().out
    assert out == f"2 records of 1 row in 1 domain written to {tmp_path / 'train.json'}\n"


def test_steps_that_were_not_sampled_after_an_error_are_wrong(tmp_path):
    row = visualprm_raw(right=(16, 0, 0))
    row["steps_with_score"][2]["num_mc_total"] = 0
    source = write_lines(tmp_path / "a.jsonl", row)
    records = convert("from-visualprm-raw", source, tmp_path / "train.json")
    assert accuracies(records) == [1.0, 0.0]


def test_a_final_answer_within_the_last_step_is_cut_off(tmp_path):
    steps = [STEPS[0], "Step 2: Twice 4 is 8.\nFinal answer: 8"]
    source = write_lines(tmp_path / "a.jsonl", visualprm_raw(right=(16, 16), steps=steps))
    records = convert("from-visualprm-raw", source, tmp_path / "train.json")
    assert [record["add"] for record in records] == [STEPS[0], TEXT]


def test_tags_for_the_image_move_no_label(tmp_path):
    steps = ["<image>\nStep 1: The bar ends at 4.", "Step 2: Twice 4 <image> is 8.", STEPS[2]]
    source = write_lines(tmp_path / "a.jsonl", visualprm_raw(steps=steps))
    records = convert("from-visualprm-raw", source, tmp_path / "train.json")
    assert [(record["add"], record["score"]) for record in records] == [
        (STEPS[0], 16),
        (STEPS[0] + "\n\nStep 2: Twice 4 is 8.", 12),
    ]


def test_a_response_that_its_steps_do_not_follow_is_joined_from_them(tmp_path):
    source = write_lines(tmp_path / "a.jsonl", visualprm_raw(response="Something else."))
    records = convert("from-visualprm-raw", source, tmp_path / "train.json")
    assert [record["add"] for record in records] == [STEPS[0], TEXT]


def test_steps_without_names_get_headings(tmp_path):
    steps = ["The bar ends at 4.", "Twice 4 is 8.", "Final answer: 8"]
    source = write_lines(tmp_path / "a.jsonl", visualprm_raw(steps=steps))
    records = convert("from-visualprm-raw", source, tmp_path / "train.json")
    assert [record["add"] for record in records] == [STEPS[0], TEXT]


def test_a_folder_is_a_domain_for_each_file_and_images_stay_where_they_are(tmp_path):
    folder = tmp_path / "annotations"
    write_lines(folder / "b.jsonl", visualprm_raw(image=["7.png"]))
    write_lines(folder / "a.jsonl", visualprm_raw())
    flags = ["--image_dir", "images"]
    records = convert("from-visualprm-raw", folder, tmp_path / "train.jsonl", *flags)
    assert [record["dataset"] for record in records] == ["a", "a", "b", "b"]
    assert records[-1]["image_path"] == "images/7.png" and records[-1]["id"] == 1
    assert len((tmp_path / "train.jsonl").read_text().splitlines()) == 4


def test_rows_have_one_image_several_or_none(tmp_path, capsys):
    rows = [visualprm_raw(image=image) for image in ("7.png", ["7.png"], ["7.png", "8.png"])]
    rows += [visualprm_raw(image=image) for image in ("", None, [])]
    source = write_lines(tmp_path / "a.jsonl", *rows)
    records = convert("from-visualprm-raw", source, tmp_path / "train.json", "--image_dir", "i")
    found = [record["image_path"] for record in records[::2]]
    assert found == ["i/7.png", "i/7.png", ["i/7.png", "i/8.png"], None, None, None]
    assert f"{source}: 6 records without an image: text alone" in capsys.readouterr().err


# What is spoiled in a row of VisualPRM400K-v1.1-Raw -> what is said of it.
ODD_ROWS = [
    ({"image": ["1.png", ""]}, "field 'image': is empty"),
    ({"image": 3}, "field 'image': must be text, is 3"),
    ({"question_orig": None, "question": None}, "field 'question': is missing"),
    ({"question_orig": "<image>\n"}, "field 'question_orig': is empty"),
    ({"question_orig": "a <|im_end|>"}, "field 'question_orig': holds the control token"),
    ({"steps_with_score": []}, "field 'steps_with_score': must be a list, is []"),
    ({"steps_with_score": [3]}, "field 'steps_with_score': must hold objects only, holds 3"),
    (
        {"steps_with_score": [{"step": "a", "score": 2, "num_mc_correct": 2, "num_mc_total": 1}]},
        "field 'steps_with_score': must be a number from 0 to 1, is 2",
    ),
    (
        {"steps_with_score": [{"step": "a", "score": 0.5}]},
        "field 'steps_with_score': step 1 has no counts of continuations: null of null",
    ),
    (
        {"steps_with_score": [{"step": "a", "score": 1, "num_mc_correct": 1, "num_mc_total": 2}]},
        "field 'steps_with_score': step 1 has a score other than its counts say: 1 for 1 of 2",
    ),
    (
        {"steps_with_score": [{"score": 1, "num_mc_correct": 1, "num_mc_total": 1}]},
        "field 'steps_with_score': step 1 must have text, has null",
    ),
]


@pytest.mark.parametrize(("spoiled", "message"), ODD_ROWS, ids=[said for _, said in ODD_ROWS])
def test_an_odd_row_is_refused_with_file_line_and_field(spoiled, message, tmp_path, capsys):
    good = visualprm_raw()
    source = write_lines(tmp_path / "a.jsonl", good, "", good | spoiled, good)
    assert len(convert("from-visualprm-raw", source, tmp_path / "train.json")) == 4
    said = refusals(capsys)
    assert said[0] == "1 row of 3 refused:"
    assert said[1].startswith(f"{source}: line 3: {message}")


def test_broken_lines_are_counted_and_the_rest_is_read(tmp_path, capsys):
    source = write_lines(tmp_path / "a.jsonl", *['{"image": '] * 5, visualprm_raw(), "[]")
    assert len(convert("from-visualprm-raw", source, tmp_path / "train.json")) == 2
    said = refusals(capsys)
    assert said[0] == "6 rows of 7 refused:"
    assert said[1].startswith(f"{source}: line 1: not JSON") and len(said) == 7
    assert said[4] == f"{source}: lines that cannot be read: 2 more like these"
    assert said[5] == f"{source}: line 7: must be an object, is []"


def test_if_no_row_is_left_nothing_is_written(tmp_path, capsys):
    source = write_lines(tmp_path / "a.jsonl", visualprm_raw(image=7))
    output = tmp_path / "train.json"
    argv = ["from-visualprm-raw", "--source", str(source), "--output", str(output)]
    assert exchange.main(argv) == 2
    said = capsys.readouterr().err
    assert "line 1: field 'image': must be text, is 7" in said
    assert f"{source}: no row is left, nothing is written" in said
    assert not output.exists()


def test_missing_files_are_named(tmp_path, capsys):
    argv = ["from-mmpr", "--output", str(tmp_path / "out.json"), "--source"]
    assert exchange.main([*argv, str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl: No such file" in capsys.readouterr().err
    assert exchange.main([*argv, str(tmp_path)]) == 2
    assert "holds no .jsonl and no .parquet file" in capsys.readouterr().err


def test_chats_become_prefixes_of_their_turns(tmp_path):
    source = write_lines(tmp_path / "a.jsonl", visualprm_chat())
    first, second = convert("from-visualprm", source, tmp_path / "train.json")
    assert first == {
        "id": 0,
        "sid": 1,
        "input": "How much?",
        "add": STEPS[0],
        "image_path": "chartqa/7.png",
        "dataset": "a",
        "accuracy": 1.0,
    }
    assert second["add"] == TEXT and second["accuracy"] == 0.0


def test_a_list_of_annotations_names_domains_and_image_roots(tmp_path, capsys):
    write_lines(tmp_path / "annotations" / "a_prm.jsonl", visualprm_chat())
    entry = {"root": "VisualPRM400K/images", "annotation": "annotations/a_prm.jsonl"}
    listed = tmp_path / "meta.json"
    listed.write_text(json.dumps({"chart": entry | {"repeat_time": 1, "length": 1}}))
    [record, _] = convert("from-visualprm", listed, tmp_path / "train.json")
    assert record["dataset"] == "chart"
    assert record["image_path"] == "VisualPRM400K/images/chartqa/7.png"
    listed.write_text(json.dumps({"chart": {"root": "."}}))
    argv = ["from-visualprm", "--source", str(listed), "--output", str(tmp_path / "out.json")]
    assert exchange.main(argv) == 2
    assert "meta.json: 'chart': 'annotation' must be text" in capsys.readouterr().err


def test_odd_chats_are_refused(tmp_path, capsys):
    labelled = visualprm_chat("+x")
    silent = visualprm_chat()
    silent["conversations"].pop()
    twice = visualprm_chat()
    twice["conversations"].insert(1, twice["conversations"][1])
    bare = visualprm_chat()
    bare["conversations"][1]["value"] = STEPS[0]
    source = write_lines(tmp_path / "a.jsonl", labelled, silent, twice, bare, visualprm_chat())
    assert len(convert("from-visualprm", source, tmp_path / "train.json")) == 2
    start = f"{source}: line {{}}: field 'conversations': {{}}"
    assert refusals(capsys)[1:5] == [
        start.format(1, 'turn 4 must be + or -, is "x"'),
        start.format(2, "must end with the label of a step"),
        start.format(3, "turn 2 is not what human or gpt says in turn"),
        start.format(4, "does not open with a question and its solution process"),
    ]


def test_mm_prm_keeps_its_soft_labels(tmp_path, capsys):
    source = write_lines(tmp_path / "mm.jsonl", mm_prm(), mm_prm(labels=(1,)), mm_prm((0.5, "a")))
    records = convert("from-mm-prm", source, tmp_path / "train.json")
    assert [(record["add"], record["accuracy"]) for record in records] == [
        (STEPS[0], 0.75),
        (TEXT, 0.0),
    ]
    assert "score" not in records[0] and records[0]["dataset"] == "mm"
    start = f"{source}: line {{}}: field 'conversations': {{}}"
    assert refusals(capsys)[1:3] == [
        start.format(2, "must have a label for each step, has 1 for 2"),
        start.format(3, 'must be a number from 0 to 1, is "a"'),
    ]


def write_parquet(path, *rows: dict):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    return path


def test_vl_prm300k_is_read_from_parquet(tmp_path):
    source = write_parquet(tmp_path / "vl.parquet", vl_prm300k("['Visual Elements', 2]"))
    records = convert("from-vl-prm300k", source, tmp_path / "train.json")
    assert accuracies(records) == [1.0, 0.5, 0.0, 0.0]
    assert records[1]["add"] == "Step 1: A bar is shown.\n\nStep 2: It ends at 4."
    assert {record["dataset"] for record in records} == {"RAVEN"}


def test_counts_in_a_column_with_gaps_are_floats_and_fit(tmp_path):
    row = vl_prm300k(None)
    for step in row["steps_with_score"]:
        step["num_mc_total"] = float(step["num_mc_total"])
    source = write_parquet(tmp_path / "vl.parquet", row)
    assert convert("from-vl-prm300k", source, tmp_path / "train.json")[0]["times"] == 16


@pytest.mark.parametrize(
    ("first", "wanted"),
    [
        (None, [1, 1, 1, 1]),
        ("None", [1, 1, 1, 1]),
        ("['Visual Elements', 1]", [1, 0, 0, 0]),
        ("['Reasoning', 0]", [1, 1, 0, 0]),  # counts after two visual elements
        ("['Reasoning', 1]", [1, 1, 1, 0]),
        ("['Reasoning', '1']", [1, 1, 1, 0]),
    ],
)
def test_an_index_of_reasoning_counts_after_the_visual_elements(first, wanted, tmp_path):
    source = write_parquet(tmp_path / "vl.parquet", vl_prm300k(first))
    records = convert("from-vl-prm300k-judged", source, tmp_path / "train.json")
    assert accuracies(records) == wanted


def test_an_index_of_no_step_is_refused(tmp_path, capsys):
    headless = vl_prm300k("['Reasoning', 0]")
    for turn in headless["conversations"]:
        turn["content"][0]["text"] = turn["content"][0]["text"].replace("[Reasoning]", "")
    odd = [vl_prm300k("['Reasoning', 2]"), vl_prm300k("['Other', 0]"), vl_prm300k("(")]
    source = write_parquet(tmp_path / "vl.parquet", *odd, headless, vl_prm300k(None))
    assert len(convert("from-vl-prm300k-judged", source, tmp_path / "train.json")) == 4
    start = f"{source}: row {{}}: field 'first_incorrect_step': {{}}"
    said = refusals(capsys)
    assert said[1] == start.format(
        1, """is the index of no step: "['Reasoning', 2]" after 2 of 4 steps"""
    )
    assert said[2] == start.format(2, """must be a section and an index, is "['Other', 0]\"""")
    assert said[3] == start.format(3, 'must be a section and an index, is "("')
    assert said[4] == start.format(4, "is in Reasoning, where the conversation has no such heading")


def test_a_file_that_is_no_parquet_is_named(tmp_path, capsys):
    source = tmp_path / "vl.parquet"
    source.write_bytes(b"PAR1 and more")
    argv = ["from-vl-prm300k", "--source", str(source), "--output", str(tmp_path / "out.json")]
    assert exchange.main(argv) == 2
    assert "vl.parquet: no parquet file" in capsys.readouterr().err


def test_pairs_become_meta_records(tmp_path, capsys):
    source = write_lines(tmp_path / "pairs.jsonl", mmpr(), mmpr(rejected=mmpr()["chosen"]))
    right, wrong = convert("from-mmpr", source, tmp_path / "meta.json")
    assert right == {
        "true_false": True,
        "input": "How much?",
        "response": "Step 1: 4.\nFinal answer: 8",
        "image_path": "images/7.png",
        "dataset": "pairs",
    }
    assert wrong["true_false"] is False and wrong["response"].endswith("6")
    assert "line 2: field 'rejected': is the same as the chosen response" in capsys.readouterr().err


def test_prm800k_follows_the_chosen_completions_and_keeps_the_branches(tmp_path, capsys):
    row = prm800k(
        prm800k_step(("Add 2 to 2.", 1), ("Take 2 from 2.", -1), ("Not rated.", None)),
        prm800k_step(("Hm.", 0), ("It is 4.", 1), chosen=1),
        prm800k_step(("It is 5.", -1), chosen=None),
        finish="found_error",
    )
    odd = prm800k(prm800k_step(("Add.", 7)))
    lost = prm800k(prm800k_step(("Add.", 1), chosen=4))
    source = write_lines(tmp_path / "phase2.jsonl", row, odd, lost)
    records = convert("from-prm800k", source, tmp_path / "train.json")
    assert [(r["id"], r["sid"], r["add"].split(" ")[-1], r["accuracy"]) for r in records] == [
        (0, 1, "2.", 1.0),
        (0, 2, "4.", 1.0),
        (0, 3, "5.", 0.0),
        (1, 1, "2.", 0.0),  # "Take 2 from 2."
        (2, 2, "Hm.", 1.0),
    ]
    assert records[2]["add"] == "Step 1: Add 2 to 2.\nStep 2: It is 4.\nStep 3: It is 5."
    assert {record["image_path"] for record in records} == {None}
    said = refusals(capsys)
    assert said[1].endswith("field 'label.steps': step 1 has a rating of 7, not -1, 0 or 1")
    assert said[2].endswith("field 'label.steps': step 1 chooses no completion of its own: 4")


def test_a_human_completion_goes_on_where_all_others_are_wrong(tmp_path):
    human = {"text": "Add 2.", "rating": None, "source": "human", "flagged": False}
    row = prm800k(prm800k_step(("Take 2.", -1), chosen=None, human=human))
    source = write_lines(tmp_path / "phase1.jsonl", row)
    records = convert("from-prm800k", source, tmp_path / "train.json")
    assert [(r["add"], r["accuracy"]) for r in records] == [
        ("Step 1: Add 2.", 1),
        ("Step 1: Take 2.", 0),
    ]


def test_math_shepherd_is_cut_at_its_markers(tmp_path, capsys):
    other = math_shepherd()
    other["label"] = other["label"].replace("2 + 2 is 4", "2 + 2 is 5")
    bare = math_shepherd(steps=("First, add.", "Then 4."))
    source = write_lines(tmp_path / "shepherd.jsonl", math_shepherd(), other, bare)
    records = convert("from-math-shepherd", source, tmp_path / "train.json")
    assert [(record["add"], record["accuracy"]) for record in records] == [
        ("Step 1: 2 + 2 is 4.", 1.0),
        ("Step 1: 2 + 2 is 4.\nStep 2: The answer is: 5", 0.0),
    ]
    assert records[0]["input"] == "What is 2 + 2?" and records[0]["dataset"] == "GSM8K"
    said = refusals(capsys)
    assert said[1].endswith("field 'label': differs from 'input' in step 1 by more than its label")
    assert said[2].endswith("field 'input': holds no step with its label")
