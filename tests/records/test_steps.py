"""Where steps are said to be: --step_pattern, a response of its own, the line that counts them."""

from __future__ import annotations

import json
import shutil

import pytest

import main
from reweighting.records.reader import RecordReader, load_meta
from reweighting.records.steps import MAX_STEPS
from reweighting.reward_model import RewardModel
from reweighting.rollouts import __main__ as rollouts
from reweighting.selection import __main__ as selection
from reweighting.training import arguments
from tests.conftest import command

PATTERN = "^Part [A-Z]:"
CHAIN = "Part A: look.\nPart B: it is red.\nPart C: so red."


@pytest.fixture(scope="module")
def marked(dataset, tmp_path_factory):
    """The data with chains whose steps are "Part A:", …, and a model trained on them."""
    folder = tmp_path_factory.mktemp("marked")
    shutil.copytree(dataset / "images", folder / "images")
    for name in ("train.json", "meta.json"):
        text = (dataset / name).read_text()
        for number, letter in enumerate("ABCDEFG", start=1):
            text = text.replace(f"Step {number}:", f"Part {letter}:")
        (folder / name).write_text(text)
    flags = ("--step_pattern", PATTERN, "--iteration_num", "2")
    assert main.main(command(folder, folder / "run", *flags)) == 0
    return folder


def test_an_own_pattern_goes_with_the_model(marked, tmp_path, capsys):
    head = json.loads((marked / "run" / "score_head.json").read_text())
    assert head["step_pattern"] == PATTERN
    model = RewardModel.from_pretrained(marked / "run")
    question, image = "Question: which?", str(marked / "images" / "0.png")
    assert len(model.score(image, question, CHAIN)) == 3
    assert len(model.score(image, question, CHAIN.replace("Part ", "Step "))) == 1

    candidates = tmp_path / "few.json"
    record = {"question": question, "image_path": "images/0.png", "candidates": [CHAIN, "red"]}
    candidates.write_text(json.dumps([record]))
    flags = ["--weights_path", str(marked / "run"), "--candidates", str(candidates)]
    flags += ["--image_root", str(marked), "--device", "cpu", "--precision", "fp32"]
    flags += ["--output_dir", str(tmp_path / "out")]
    capsys.readouterr()
    assert selection.main(flags) == 0
    line = "2 chains: 1 of 1 step, 1 of 3 steps; "
    assert line in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "few" / selection.SAMPLES_FILE).read_text())
    assert [len(z) for z in found["step_log_odds"]] == [3, 1]
    # Another pattern is another setting.
    assert selection.main([*flags, "--step_pattern", "^Step"]) == 2
    assert "--output_dir" in capsys.readouterr().err
    other = [*flags[:-1], str(tmp_path / "other"), "--step_pattern", "^Part A"]
    assert selection.main(other) == 0
    assert "2 chains: 2 of 1 step; " in capsys.readouterr().out


def test_a_run_does_not_resume_with_another_pattern(marked, capsys):
    flags = ("--resume", "--iteration_num", "4", "--step_pattern", "^Part")
    assert main.main(command(marked, marked / "run", *flags)) == 2
    assert f"--step_pattern was {PATTERN}, is ^Part" in capsys.readouterr().err


def test_the_plan_says_how_many_steps_chains_have(marked, dataset, tmp_path, capsys):
    def said(data, *flags):
        assert main.main(command(data, tmp_path / "none", "--dry_run", *flags)) == 0
        return capsys.readouterr().out

    known = said(dataset)
    assert "24 chains: " in known and " of 2 steps, " in known
    assert "; 0 without a final answer" in known
    assert "24 chains: 24 of 1 step; 0 without" in said(marked)  # nothing is hidden
    assert "24 chains: 24 of 1 step" not in said(marked, "--step_pattern", PATTERN)


@pytest.mark.parametrize(
    "pattern, why",
    [("(a+)+", "10,000 ways"), ("[", "no regular expression"), ("", "between")],
)
def test_a_pattern_that_cannot_be_used_is_refused(tmp_path, dataset, capsys, pattern, why):
    with pytest.raises(SystemExit) as error:
        arguments.parse_arguments(command(dataset, tmp_path, "--step_pattern", pattern))
    assert error.value.code == 2
    said = capsys.readouterr().err
    assert "--step_pattern" in said and why in said


def test_a_response_of_its_own_ends_the_guessing(dataset, tmp_path, capsys):
    question = "Use this form:\nStep 1: ...\nStep 2: ...\n\nWhich colour?"
    response = (
        "Step 1: look.\nStep 2: red.\nAgain.\nStep 1: look.\nStep 2: blue.\nFinal answer: blue"
    )
    file = tmp_path / "meta.json"
    base = {"image_path": str(dataset / "images" / "0.png"), "true_false": True}
    record = {**base, "input": question, "response": response}
    file.write_text(json.dumps([record]))
    [sample], _ = load_meta(RecordReader(str(file), str(dataset)))
    assert sample.prompts[0].question == question
    assert sample.prompts[-1].text == f"{question}\n\n{response.partition(chr(10) + 'Final')[0]}"
    for bad, why in ((5, "must be text, is 5"), (" ", "is empty")):
        file.write_text(json.dumps([{**record, "response": bad}]))
        reader = RecordReader(str(file), str(dataset))
        load_meta(reader)
        assert why in reader.all_problems()[0] and "'response'" in reader.all_problems()[0]


def test_too_many_steps_are_a_problem_of_their_record(dataset, tmp_path):
    chain = "\n".join(f"Part {number}: x" for number in range(MAX_STEPS + 1))
    file = tmp_path / "meta.json"
    base = {"image_path": str(dataset / "images" / "0.png"), "true_false": True}
    file.write_text(json.dumps([{**base, "input": "Which?", "response": chain}]))
    reader = RecordReader(str(file), str(dataset), step_pattern=r"^Part \d")
    load_meta(reader)
    assert "record 1: field 'response': holds 1001 steps, more than 1000" in str(
        reader.all_problems()[0]
    )


def test_rollouts_find_steps_by_an_own_pattern():
    chain = f"{CHAIN}\nFinal answer: red"
    assert not rollouts.usable(chain) and rollouts.usable(chain, PATTERN)
