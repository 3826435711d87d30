"""Best-of-N: scores, aggregations, baselines, resumption, bad input."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from reweighting.records.answers.extraction import extract
from reweighting.records.samples import CandidatesSample
from reweighting.records.steps import chain_prompts
from reweighting.reward_model.aggregation import AGGREGATIONS, aggregate, select
from reweighting.reward_model.scoring import score_candidates
from reweighting.selection import __main__ as selection
from reweighting.selection import results
from reweighting.selection.__main__ import AGGREGATION_NAMES
from reweighting.selection.best_of_n import Pool, evaluate, interval, sizes, subsets
from reweighting.system.files import complete_lines
from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> list[CandidatesSample]:
    folder, pixels = tmp_path_factory.mktemp("candidates"), np.random.default_rng(0)
    made = []
    for number in range(5):
        path = folder / f"{number % 4}.png"  # the last question shares the first one's image
        Image.fromarray(pixels.integers(0, 255, (84, 84, 3), dtype=np.uint8)).save(path)
        candidates = [
            f"Step 1: look at {number}.\nStep 2: it is {colour}.\nFinal answer: {colour}"
            for colour in ("red", "blue", "red", "pale green")
        ]
        candidates[3] = "It is green."
        made.append(
            CandidatesSample(
                number + 1,
                f"Question {number}: which colour?",
                candidates,
                (str(path),),
                [True, False, True, False],
                "red",
                None,
            )
        )
    return made


def test_scores_equal_those_of_separate_prompts(reward_model, samples):
    [batch] = score_candidates(reward_model, samples)
    for sample, log_odds in zip(samples, batch, strict=True):
        assert [len(z) for z in log_odds] == [2, 2, 2, 1]
        for candidate, z in zip(sample.candidates, log_odds, strict=True):
            alone = reward_model.score(sample.images, sample.question, candidate)
            assert torch.sigmoid(torch.tensor(z)).tolist() == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("limit", [1, 300, 8192])
def test_empty_candidates_lose(reward_model, samples, limit):
    emptied = [replace(sample, candidates=list(sample.candidates)) for sample in samples]
    for question, candidate in ((0, 0), (1, 3), (3, 0), (3, 1), (3, 2), (3, 3)):
        emptied[question].candidates[candidate] = " \n" if candidate == 3 else ""
    [whole] = score_candidates(reward_model, samples)
    batches = score_candidates(reward_model, emptied, max_tokens_per_batch=limit)
    found = [question for batch in batches for question in batch]
    for question, log_odds in enumerate(found):
        for candidate, text in enumerate(emptied[question].candidates):
            wanted = whole[question][candidate] if text.strip() else []
            assert log_odds[candidate] == pytest.approx(wanted, abs=1e-5)
    for name in AGGREGATIONS:
        assert aggregate([], name) == -math.inf < aggregate([-1e30], name)
        assert [select(found[question], name) == 0 for question in (0, 3)] == [False, True]
        assert select(found[1], name) != 3
    pools = [
        Pool.of(sample.candidates, [False, True, False, False], z, ["min"])
        for sample, z in zip(emptied[:2], found, strict=False)
    ]
    assert pools[0].probability[0] == 0 and pools[0].scores["min"][0] == -math.inf
    assert all(
        np.isfinite(values).all() for by in evaluate(pools).values() for values in by.values()
    )


@pytest.mark.parametrize("limit", [1, 300])
def test_small_batches_and_cut_trees_give_the_same_scores(reward_model, samples, limit):
    [whole] = score_candidates(reward_model, samples)
    batches = list(score_candidates(reward_model, samples, max_tokens_per_batch=limit))
    assert len(batches) > 1
    pieces = [question for batch in batches for question in batch]
    for ours, theirs in zip(pieces, whole, strict=True):
        for left, right in zip(ours, theirs, strict=True):
            assert left == pytest.approx(right, abs=1e-5)


def test_aggregations_by_hand():
    scores = [0.9, 0.4, 0.6]
    z = [math.log(s / (1 - s)) for s in scores]
    by_hand = {
        "mean_log_odds": sum(z) / 3,
        "sum_log_odds": sum(z),
        "mean": sum(scores) / 3,
        "min": 0.4,
        "max": 0.9,
        "product": math.log(0.9 * 0.4 * 0.6),
        "last": 0.6,
    }
    assert set(by_hand) == set(AGGREGATIONS) and list(AGGREGATIONS) == list(AGGREGATION_NAMES)
    for name, value in by_hand.items():
        assert aggregate(z, name) == pytest.approx(value, abs=1e-6), name


def test_ties_go_to_the_first_and_a_chain_without_steps_competes(reward_model, samples):
    assert select([[0.5], [1.0, 1.0], [1.0], [0.0]]) == 1
    assert select([[3.0, -9.0], [1.0, 1.0]], "max") == 0
    assert [p.text for p in chain_prompts("Q", samples[0].candidates[3])] == ["Q\n\nIt is green."]


def test_select_from_python_agrees(reward_model, samples):
    [batch] = score_candidates(reward_model, samples)
    sample = samples[0]
    chosen = reward_model.select(sample.images, sample.question, sample.candidates)
    assert chosen == select(batch[0])


def test_final_answers_are_found_whatever_their_decoration():
    assert extract("Step 1: x\n**Final answer:** B.\n") == "B."
    assert extract("so. Final answer is 42") == "42"
    assert extract("no verdict") == ""


def pool(answers: str, right: str, scores: list[float]) -> Pool:
    """Candidates with one-letter answers, right where ``right`` has a 1, and their z."""
    return Pool.of(
        [f"Final answer: {answer}" if answer != "-" else "none" for answer in answers],
        [digit == "1" for digit in right],
        [[z] for z in scores],
        ["mean_log_odds"],
    )


def test_methods_by_hand():
    found = pool("xxyy", "0011", [-1, -1, 2, 0]).accuracies(4)
    assert found == {
        "one sample": 0.5,
        "majority": 0,  # a tie, which goes to the first answer
        "weighted vote": 1,
        "mean_log_odds": 1,
        "oracle": 1,
    }
    # two weak votes beat one strong one: 2 σ(0.5) > σ(1)
    found = pool("xyy", "100", [1, 0.5, 0.5]).accuracies(3)
    assert found["weighted vote"] == 0 and found["mean_log_odds"] == 1
    assert pool("abB", "011", [0, 0, 0]).accuracies(3)["majority"] == 1  # case does not matter
    # a candidate without an answer has no vote, but can be picked by its score
    found = pool("--x", "100", [9, 0, 0]).accuracies(3)
    assert found["majority"] == 0 and found["mean_log_odds"] == 1


def test_accuracies_at_n_are_means_over_all_subsets():
    scores, right = [0.3, 0.9, 0.1, 0.5], "1010"
    found = pool("abcd", right, scores).accuracies(2)
    pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    picked = [right[max(pair, key=lambda k: scores[k])] == "1" for pair in pairs]
    assert found["mean_log_odds"] == pytest.approx(sum(picked) / 6)
    assert found["oracle"] == pytest.approx(5 / 6) and found["one sample"] == 0.5
    assert pool("abcd", right, scores).accuracies(1)["oracle"] == 0.5


def test_subsets_are_exact_or_many():
    assert sizes(8) == [1, 2, 4, 8] and sizes(6) == [1, 2, 4, 6] and sizes(1) == [1]
    assert len(subsets(8, 4)) == 70 and len(subsets(32, 16)) >= 200
    assert all(len(set(row)) == 16 and (np.diff(row) > 0).all() for row in subsets(32, 16))
    assert len(np.unique(subsets(32, 16), axis=0)) == 200


def test_pools_of_different_sizes_use_what_they_have():
    found = evaluate([pool("ab", "01", [0, 1]), pool("abcd", "0001", [0, 1, 2, 3])])
    assert found["mean_log_odds"][4].tolist() == [1, 1]
    assert found["oracle"][1].tolist() == [0.5, 0.25]


def test_the_interval_covers_the_mean_and_shrinks():
    rng = np.random.default_rng(1)
    mean, error, low, high = interval((rng.random(400) < 0.6).astype(float))
    assert low < mean < high and error == pytest.approx((0.6 * 0.4 / 400) ** 0.5, rel=0.1)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.15)
    runs = np.stack([np.full(400, value) for value in (0.2, 0.8)])
    _, _, low, high = interval(runs)  # differences between runs are uncertainty too
    assert low == pytest.approx(0.2) and high == pytest.approx(0.8)


def test_results_skip_questions_without_truth():
    line = {
        "candidates": ["Final answer: a", "Final answer: b"],
        "step_log_odds": [[0.0, 1.0], [2.0]],
        "chosen": {"min": 1},
    }
    found = results.accuracies([{**line, "true_false": [False, True]}, line])
    assert found["min"]["2"]["accuracy"] == 1 and found["min"]["2"]["questions"] == 1
    assert found["one sample"]["1"]["accuracy"] == 0.5
    assert results.accuracies([line]) == {}


@pytest.fixture(scope="module")
def run(reward_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    reward_model.save_pretrained(path)
    return path


def flags(run, candidates, output, *more: str) -> list[str]:
    return [
        *("--weights_path", str(run), "--candidates", str(candidates), "--output_dir", str(output)),
        *("--image_root", str(REPOSITORY / "data"), "--device", "cpu", "--precision", "fp32"),
        *more,
    ]


@pytest.fixture
def candidates(tmp_path):
    records = json.loads((REPOSITORY / "data" / "test_mix.json").read_text())[:12]
    path = tmp_path / "few.json"
    path.write_text(json.dumps(records))
    return path


def test_an_interrupted_run_ends_with_the_same_files(run, candidates, tmp_path, capsys):
    limit = ["--max_tokens_per_batch", "2000", "--aggregation", "mean_log_odds", "min"]
    assert selection.main(flags(run, candidates, tmp_path / "whole", *limit)) == 0
    printed = capsys.readouterr().out
    assert "few" in printed and "majority" in printed and "oracle" in printed
    whole = (tmp_path / "whole" / "few" / "samples.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    assert len(lines) == 12 and json.loads(lines[-1])["batch"][0] > 1
    assert selection.main(flags(run, candidates, tmp_path / "again", *limit)) == 0
    for kept in (0, 1, 5, 11):  # killed while a line of some batch was being written
        torn = b"".join(lines[:kept]) + lines[kept][:40]
        (tmp_path / "again" / "few" / "samples.jsonl").write_bytes(torn)
        assert selection.main(flags(run, candidates, tmp_path / "again", *limit)) == 0
        assert (tmp_path / "again" / "few" / "samples.jsonl").read_bytes() == whole
    results = [(tmp_path / name / "results.json").read_text() for name in ("whole", "again")]
    assert results[0] == results[1]
    assert set(json.loads(results[0])["few"]) == {
        *("one sample", "majority", "weighted vote", "mean_log_odds", "min", "oracle")
    }


def test_results_of_another_setting_are_not_continued(run, candidates, tmp_path, capsys):
    assert selection.main(flags(run, candidates, tmp_path / "out")) == 0
    assert selection.main(flags(run, candidates, tmp_path / "out", "--aggregation", "min")) == 2
    assert "results of another model, file or setting" in capsys.readouterr().err


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({"candidates": ...}, "field 'candidates': is missing"),
        ({"candidates": []}, "field 'candidates': must be a list of responses, is []"),
        ({"candidates": ["a", 7]}, "field 'candidates': response 2 must be text, is 7"),
        ({"candidates": ["a", None]}, "field 'candidates': response 2 must be text, is null"),
        ({"candidates": ["a<|endoftext|>"]}, "response 1 holds the control token <|endoftext|>"),
        ({"candidates": ["a\udc00"]}, "field 'candidates': holds half of a surrogate pair"),
        ({"candidates": ["Step 1"], "answer": "<|im_end|>"}, "field 'answer': holds the control"),
        ({"candidates": ["\n".join(f"Step {n}: a" for n in range(1, 1002))]},
         "field 'candidates': response 1 holds 1001 steps, more than 1000"),
        ({"candidates": ["", "a" * 200_001]}, "response 2 holds 200001 characters, more than"),
        ({"true_false": [True]}, "field 'true_false': holds 1 values for 8 candidates"),
        ({"true_false": "yes"}, "field 'true_false': must be a list of true or false"),
        ({"question": " "}, "field 'question': is empty"),
        ({"image_path": "images/none.png"}, "none.png does not exist"),
        ({"answer": 3}, "field 'answer': must be text, is 3"),
        ({"choices": "a"}, "field 'choices': must be a list of texts"),
    ],
)  # fmt: skip
def test_malformed_candidates_are_named(run, candidates, tmp_path, capsys, fields, expected):
    records = json.loads(candidates.read_text())
    for name, value in fields.items():
        if value is ...:
            del records[2][name]
        else:
            records[2][name] = value
    candidates.write_text(json.dumps(records))
    assert selection.main(flags(run, candidates, tmp_path / "out")) == 2
    said = capsys.readouterr().err
    assert f"{candidates}: record 3" in said and expected in said
    assert not (tmp_path / "out").exists()


def test_one_empty_candidate_or_bad_record_stops_no_file(run, candidates, tmp_path, capsys):
    records = json.loads(candidates.read_text())[:4]
    records[0]["candidates"][:7] = [""] * 7
    records[1]["candidates"] = [" "] * 8
    records[2]["image_path"] = "images/none.png"
    candidates.write_text(json.dumps(records))
    assert selection.main(flags(run, candidates, tmp_path / "out")) == 2
    assert "record 3: field 'image_path'" in capsys.readouterr().err
    assert selection.main(flags(run, candidates, tmp_path / "out", "--skip_bad_records")) == 0
    said = capsys.readouterr().err
    assert f"{candidates}: left out 1 record with problems:" in said and "none.png" in said

    def not_json(word: str):
        raise AssertionError(f"{word} is no JSON")

    text = (tmp_path / "out" / "few" / "samples.jsonl").read_text()
    lines = [json.loads(line, parse_constant=not_json) for line in text.splitlines()]
    assert [line["record"] for line in lines] == [1, 2, 4]
    assert lines[0]["step_log_odds"][:7] == [[]] * 7 and lines[0]["step_log_odds"][7]
    assert lines[0]["aggregates"]["last"][:7] == [None] * 7
    assert set(lines[0]["chosen"].values()) == {7} and set(lines[1]["chosen"].values()) == {0}
    results = json.loads((tmp_path / "out" / "results.json").read_text(), parse_constant=not_json)
    assert results["few"]["last"]["8"]["questions"] == 3
    records = records[2:3]
    candidates.write_text(json.dumps(records))
    assert selection.main(flags(run, candidates, tmp_path / "no", "--skip_bad_records")) == 2
    assert "no usable record is left" in capsys.readouterr().err


def test_the_key_candidate_is_accepted_and_truth_is_optional(run, candidates, tmp_path):
    records = json.loads(candidates.read_text())[:2]
    for record in records:
        record["candidate"] = record.pop("candidates")
        del record["true_false"], record["answer"]
    candidates.write_text("\n".join(map(json.dumps, records)))
    assert selection.main(flags(run, candidates, tmp_path / "out")) == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == {}
    lines = (tmp_path / "out" / "few" / "samples.jsonl").read_text().splitlines()
    assert len(json.loads(lines[0])["step_scores"]) == 8


def test_truth_follows_from_the_answer_where_it_is_not_given(run, candidates, tmp_path):
    records = json.loads(candidates.read_text())
    wanted = [record.pop("true_false") for record in records]
    candidates.write_text(json.dumps(records))
    assert selection.main(flags(run, candidates, tmp_path / "out")) == 0
    lines = (tmp_path / "out" / "few" / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["true_false"] for line in lines] == wanted


def test_torn_and_unusual_lines_are_continued(run, candidates, tmp_path):
    """U+2028 and U+0085 end no line of JSON; a kill may tear a character, or an empty file."""
    records = json.loads(candidates.read_text())[:4]
    for record in records:
        record["question"] += " \u2028 and \x85 größer?"
    candidates.write_text(json.dumps(records))
    limit = ["--max_tokens_per_batch", "600"]
    folder = tmp_path / "out" / "few"
    assert selection.main(flags(run, candidates, tmp_path / "out", *limit)) == 0
    whole = (folder / "samples.jsonl").read_bytes()
    for end in (
        whole.rindex("ö".encode()) + 1,
        len(whole) - 1,
        whole.index(b"\n") + 1,
    ):
        (folder / "samples.jsonl").write_bytes(whole[:end])
        kept = complete_lines(folder / "samples.jsonl")
        assert len(kept) == whole[:end].count(b"\n")
        assert selection.main(flags(run, candidates, tmp_path / "out", *limit)) == 0
        assert (folder / "samples.jsonl").read_bytes() == whole
    (folder / "run.json").write_text("")
    assert selection.main(flags(run, candidates, tmp_path / "out", *limit)) == 2
    (folder / "samples.jsonl").unlink()
    assert selection.main(flags(run, candidates, tmp_path / "out", *limit)) == 0
    assert (folder / "samples.jsonl").read_bytes() == whole


def test_another_weight_image_or_setting_is_not_continued(run, candidates, tmp_path, capsys):
    """Whatever weight changes; a copy of the same images elsewhere is the same."""
    import shutil

    from safetensors.torch import load_file, save_file

    model, images = tmp_path / "model", tmp_path / "images"
    shutil.copytree(run, model)
    shutil.copytree(REPOSITORY / "data" / "images", images / "images")
    arguments = flags(model, candidates, tmp_path / "out")
    assert selection.main(arguments) == 0
    moved = [*arguments, "--image_root", str(images)]
    assert selection.main(moved) == 0
    capsys.readouterr()

    record = json.loads(candidates.read_text())[0]
    picture = images / record["image_path"]
    with Image.open(picture) as image:
        changed = image.convert("RGB")
    changed.putpixel((5, 5), (1, 2, 3))
    changed.save(picture)
    assert selection.main(moved) == 2
    assert "another model, file or setting (images)" in capsys.readouterr().err
    assert selection.main([*arguments, "--max_tokens_per_batch", "9"]) == 2
    assert "setting (max_tokens_per_batch)" in capsys.readouterr().err

    file = model / "base_model" / "model.safetensors"
    original = load_file(file)
    for name in sorted(original)[::20]:
        save_file({**original, name: original[name] * 1.001}, file, {"format": "pt"})
        assert selection.main(arguments) == 2, name
        assert "setting (weights)" in capsys.readouterr().err
    save_file(original, file, {"format": "pt"})
    assert selection.main(arguments) == 0


def test_an_empty_candidate_loses(reward_model, samples, tmp_path):
    from dataclasses import replace

    few = [
        replace(samples[0], candidates=["", *samples[0].candidates[1:3], " \n"]),
        replace(samples[1], candidates=["", ""], true_false=None),
    ]
    ways = list(AGGREGATIONS)
    for limit in (1, 8192):
        path = tmp_path / f"{limit}.jsonl"
        first, second = results.score_questions(reward_model, few, path, ways, limit, "fp32")
        assert [len(z) for z in first["step_log_odds"]] == [0, 2, 2, 0]
        assert first["step_scores"][0] == [] and first["aggregates"]["min"][0] is None
        assert set(first["chosen"].values()) <= {1, 2} and second["step_log_odds"] == [[], []]
        assert "Infinity" not in path.read_text()
        found = results.accuracies([first, second])
        assert found["mean_log_odds"]["4"]["accuracy"] in (0, 1)


def test_choices_are_named_and_failing_writes_are_one_line(run, candidates, tmp_path, capsys):
    records = json.loads(candidates.read_text())[:1]
    for record in records:
        del record["true_false"], record["answer"]
    candidates.write_text(json.dumps(records))
    assert selection.main(flags(run, candidates, tmp_path / "out")) == 0
    said = capsys.readouterr().out
    assert f"choices: {tmp_path / 'out' / 'few' / 'samples.jsonl'} (no right and wrong" in said
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as exit:
        selection.main(flags(run, candidates, tmp_path / "file" / "out"))
    assert exit.value.code == 2 and "cannot be written" in capsys.readouterr().err
    (tmp_path / "taken" / "few" / "samples.jsonl").mkdir(parents=True)
    assert selection.main(flags(run, candidates, tmp_path / "taken")) == 2
    said = capsys.readouterr().err
    assert "samples.jsonl" in said and "Traceback" not in said


def test_votes_follow_the_options_and_what_cannot_be_read_is_said(
    run, candidates, tmp_path, capsys
):
    first, second = json.loads(candidates.read_text())[:2]
    for record in (first, second):
        del record["true_false"]
    answers = ["C", "C", "B", "(B)", "B. blue", "blue"]
    first |= {"answer": "B", "choices": ["red", "blue", "green"]}
    first["candidates"] = [f"Step 1: look {n}.\nFinal answer: {a}" for n, a in enumerate(answers)]
    second |= {"answer": "A", "choices": ["red", "blue"]}
    second["candidates"] = [
        *(f"Step 1: look {n}.\nFinal answer: {a}" for n, a in enumerate("BAAA")),
        *("Step 1: I look and look.", "Final answer:\n\\["),
    ]
    candidates.write_text(json.dumps([first, second]))
    assert selection.main(flags(run, candidates, tmp_path / "out")) == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())["few"]
    assert found["majority"]["6"]["accuracy"] == 1
    assert found["one sample"]["1"]["accuracy"] == pytest.approx((4 / 6 + 3 / 6) / 2)
    assert "few: 2 of 12 candidates have no readable answer" in capsys.readouterr().out


def test_a_table_says_what_it_leaves_out():
    lines = [{"candidates": ["Final answer: 5"], "true_false": [True]}, {"candidates": ["B", "A"]}]
    assert results.table_notes({"half": lines}) == [
        "half: the table covers 1 of 2 questions: of the others, no right and wrong is known"
    ]
    assert results.table_notes({"all": lines[:1]}) == []


def test_a_damaged_line_of_earlier_results_is_named(run, candidates, tmp_path, capsys):
    command = flags(run, candidates, tmp_path)
    assert selection.main(command) == 0
    [path] = tmp_path.rglob("samples.jsonl")
    whole = path.read_text()
    for old, new in (('"batch"', '"botch"'), ('"record": 1,', '"record": 7,')):
        path.write_text(whole.replace(old, new, 1))
        assert selection.main(command) == 2
        assert "samples.jsonl: line 1 is damaged" in capsys.readouterr().err
    path.write_text(whole)
    assert selection.main(command) == 0
