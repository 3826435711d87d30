"""The command: scores as in selection, going on after a kill, thresholds from other files only."""

from __future__ import annotations

import json
import re

import pytest

from reweighting.evaluate import __main__ as evaluation
from reweighting.evaluate import results
from reweighting.records.steps import split_steps
from reweighting.reward_model import RewardModel
from reweighting.selection import __main__ as selection
from tests.conftest import REPOSITORY

DATA = REPOSITORY / "data"


@pytest.fixture(scope="module", autouse=True)
def few_resamples():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results.measure, "__defaults__", (20,))
        yield


@pytest.fixture(scope="module")
def run(reward_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    reward_model.save_pretrained(path)
    return path


def own_records(name: str, count: int = 12) -> list[dict]:
    return json.loads((DATA / f"{name}.json").read_text())[:count]


def visual_records(records: list[dict]) -> list[dict]:
    """One chain of every record in the layout of VisualProcessBench; the last step is neutral."""
    made = []
    for number, record in enumerate(records):
        chain = number % len(record["candidates"])
        text = record["candidates"][chain].partition("\nFinal answer")[0]
        labels = [1 if right else -1 for right in record["step_correct"][chain]]
        made.append(
            {
                "image": [record["image_path"]],
                "question": record["question"],
                "answer": record["answer"],
                "response": {
                    "steps": text.split("\n"),
                    "process_correctness": [*labels[:-1], 0],
                },
                "policy_model": "a simulated reasoner",
                "data_source": ("MMMU", "WeMath")[number % 2],
            }
        )
    return made


def write(path, records: list[dict]):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def flags(run, benchmark: str, data, output, *more: str) -> list[str]:
    return [
        *("--weights_path", str(run), "--benchmark", benchmark, "--data", str(data)),
        *("--output_dir", str(output), "--image_root", str(DATA), "--device", "cpu"),
        *("--precision", "fp32", *more),
    ]


def lines_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", ["test_mix", "sources/test_mix"])
def test_scores_are_those_of_selection(run, tmp_path, capsys, name):
    data = write(tmp_path / "mix.json", own_records(name))
    assert evaluation.main(flags(run, "candidates", data, tmp_path / "judged")) == 0
    printed = capsys.readouterr().out
    assert re.search(r"mix.json: 12 records with (480|1,920) steps", printed)
    assert "always right" in printed and "random" in printed and "not chosen on data" in printed
    assert selection.main([
        *("--weights_path", str(run), "--candidates", str(data), "--image_root", str(DATA)),
        *("--output_dir", str(tmp_path / "selected"), "--device", "cpu", "--precision", "fp32"),
    ]) == 0  # fmt: skip
    judged, selected = (
        lines_of(tmp_path / folder / "mix" / "samples.jsonl") for folder in ("judged", "selected")
    )
    for one, other, record in zip(judged, selected, own_records(name), strict=True):
        for found, expected in zip(one["step_scores"], other["step_scores"], strict=True):
            assert found == pytest.approx(expected, abs=1e-6)
        assert one["benchmark"] == {"step_labels": record["step_correct"]}
    assert (tmp_path / "judged" / "evaluation.png").stat().st_size > 10_000
    found = json.loads((tmp_path / "judged" / "results.json").read_text())
    assert found["threshold"] == 0.5 and found["threshold_from"] is None
    assert found["sizes"]["all steps"]["records"] == 12
    assert set(found["rows"]) == {"model", "random", "always right"}


def test_lists_of_steps_are_scored_as_the_same_text(run, reward_model, tmp_path, capsys):
    records = own_records("test_mix", 3)
    data = write(tmp_path / "test.jsonl", visual_records(records))
    assert evaluation.main(flags(run, "visualprocessbench", data, tmp_path / "out")) == 0
    printed = capsys.readouterr().out
    assert "VisualPRM-8B 62.0 (macro-F1, VisualPRM paper, arXiv 2503.10291" in printed
    assert re.search(r"  MMMU +8 ", printed) and re.search(r"  WeMath +4 ", printed)
    for number, line in enumerate(lines_of(tmp_path / "out" / "test" / "samples.jsonl")):
        record = records[number]
        text = record["candidates"][number]
        image = str(DATA / record["image_path"])
        alone = reward_model.score(image, record["question"], split_steps(text)[-1])
        assert line["step_scores"][0] == pytest.approx(alone, abs=1e-6)
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["published"]["per_cent"]["GPT-4o"] == 60.3
    assert found["sizes"]["MMMU"]["not judged"] == 2


def test_a_killed_run_ends_with_the_same_files(run, tmp_path, capsys):
    data = write(tmp_path / "test.jsonl", visual_records(own_records("test_mix")))
    limit = ["--max_tokens_per_batch", "400"]
    folder = tmp_path / "out"
    command = flags(run, "visualprocessbench", data, folder, *limit)
    assert evaluation.main(command) == 0
    names = ("test/samples.jsonl", "results.json", "evaluation.png")
    whole = {name: (folder / name).read_bytes() for name in names}
    lines = whole["test/samples.jsonl"].splitlines(keepends=True)
    assert len(lines) == 12 and json.loads(lines[-1])["batch"][0] > 1
    for kept in (0, 5, 11):  # killed while a line was being written
        torn = b"".join(lines[:kept]) + lines[kept][:40]
        (folder / "test" / "samples.jsonl").write_bytes(torn)
        (folder / "results.json").unlink()
        assert evaluation.main(command) == 0
        assert {name: (folder / name).read_bytes() for name in names} == whole
    capsys.readouterr()
    write(data, visual_records(own_records("test_mix"))[::-1])
    assert evaluation.main(command) == 2
    assert "results of another model, file or setting (candidates" in capsys.readouterr().err


def test_a_threshold_comes_from_the_validation_file_alone(run, tmp_path, capsys):
    test = write(tmp_path / "test.jsonl", visual_records(own_records("test_mix")))
    own = write(tmp_path / "own.json", own_records("validation", 20))
    visual = write(tmp_path / "same.jsonl", visual_records(own_records("validation", 20)))
    found = {}
    for validation in (None, own, visual):
        more = ["--threshold_from", str(validation)] if validation else []
        command = flags(run, "visualprocessbench", test, tmp_path / "out", *more)
        assert evaluation.main(command) == 0  # the scores of the test file are used again
        found[validation] = json.loads((tmp_path / "out" / "results.json").read_text())
        assert found[validation]["threshold_from"] == (str(validation) if validation else None)
    printed = capsys.readouterr().out
    assert f"chosen on {own}" in printed and "not chosen on data" in printed
    model = {name: value["rows"]["model"]["all steps"] for name, value in found.items()}
    assert found[None]["threshold"] == 0.5 != found[own]["threshold"]
    assert model[None]["macro_f1"] != model[own]["macro_f1"]
    assert model[None]["auroc"] == model[own]["auroc"] == model[visual]["auroc"]
    assert found[None]["rows"]["random"] == found[own]["rows"]["random"]
    # Other labels in the test file change what is found, and not the threshold.
    records = visual_records(own_records("test_mix"))
    for record in records:
        values = record["response"]["process_correctness"]
        record["response"]["process_correctness"] = [-value for value in values]
    write(test, records)
    more = ["--threshold_from", str(own)]
    assert evaluation.main(flags(run, "visualprocessbench", test, tmp_path / "new", *more)) == 0
    turned = json.loads((tmp_path / "new" / "results.json").read_text())
    assert turned["threshold"] == found[own]["threshold"]
    assert turned["rows"]["model"]["all steps"]["macro_f1"] != model[own]["macro_f1"]


def test_images_of_the_validation_file_may_lie_elsewhere(run, tmp_path, capsys):
    test = write(tmp_path / "test.jsonl", visual_records(own_records("test_mix", 4)))
    records = own_records("validation", 3)
    (tmp_path / "other").mkdir()
    for record in records:
        image = (DATA / record["image_path"]).read_bytes()
        record["image_path"] = record["image_path"].rpartition("/")[2]
        (tmp_path / "other" / record["image_path"]).write_bytes(image)
    own = write(tmp_path / "validation.json", records)
    command = flags(run, "visualprocessbench", test, tmp_path / "out")
    command += ["--threshold_from", str(own)]
    assert evaluation.main(command) == 2
    assert "validation.json: record 1: field 'image_path'" in capsys.readouterr().err
    assert evaluation.main([*command, "--threshold_image_root", str(tmp_path / "other")]) == 0
    with pytest.raises(SystemExit):
        evaluation.main([*command[:-2], "--threshold_image_root", str(tmp_path / "other")])
    assert "--threshold_image_root is for --threshold_from" in capsys.readouterr().err


def test_a_threshold_from_the_test_file_or_from_one_kind_of_step_is_refused(run, tmp_path, capsys):
    records = visual_records(own_records("test_mix", 4))
    test = write(tmp_path / "test.jsonl", records)
    more = visual_records(own_records("validation", 3))
    part = write(tmp_path / "part.jsonl", [*more, *records[1:3]])
    command = flags(run, "visualprocessbench", test, tmp_path / "out", "--threshold_from")
    for same, shared in ((test, 4), (part, 2)):
        assert evaluation.main([*command, str(same)]) == 2
        expected = f"--threshold_from {same} shares {shared} chains with --data"
        assert expected in capsys.readouterr().err
    records = more
    for record in records:
        record["response"]["process_correctness"] = [1] * 5
    right = write(tmp_path / "right.jsonl", records)
    assert evaluation.main([*command, str(right)]) == 2
    assert "right.jsonl needs both right and wrong steps" in capsys.readouterr().err
    assert evaluation.main([*command, str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()  # nothing was scored


def test_several_files_are_one_benchmark(run, tmp_path):
    records = visual_records(own_records("test_mix", 8))
    whole = write(tmp_path / "whole.jsonl", records)
    parts = [write(tmp_path / f"{n}.jsonl", records[n::2]) for n in range(2)]
    assert evaluation.main(flags(run, "visualprocessbench", whole, tmp_path / "one")) == 0
    both = flags(run, "visualprocessbench", parts[0], tmp_path / "two")
    both.insert(both.index("--data") + 2, str(parts[1]))
    assert evaluation.main(both) == 0
    one, two = (json.loads((tmp_path / n / "results.json").read_text()) for n in ("one", "two"))
    assert one["sizes"]["all steps"] == two["sizes"]["all steps"]
    for name in ("macro_f1", "auroc"):
        values = [f["rows"]["model"]["all steps"][name]["value"] for f in (one, two)]
        assert values[0] == pytest.approx(values[1])


@pytest.mark.parametrize("benchmark", ["processbench", "prmbench"])
def test_text_alone_is_scored_as_python_scores_it(run, tmp_path, benchmark):
    texts = [["2 + 3 = 5", "5 + 1 = 7"], ["2 + 3 = 5"]]
    records = [
        {
            **{"problem": f"{k}: 2 + 3?", "steps": steps, "label": len(steps) - 2},
            **{"modified_question": f"{k}: 2 + 3?", "modified_process": steps},
            **{"error_steps": [2][: len(steps) - 1], "classification": "circular"},
        }
        for k, steps in enumerate(texts)
    ]
    data, out = write(tmp_path / "gsm8k.jsonl", records), tmp_path / "out"
    assert evaluation.main(flags(run, benchmark, data, out)) == 0
    lines = (out / "gsm8k" / "samples.jsonl").read_text().splitlines()
    model = RewardModel.from_pretrained(run)
    for k, (line, steps) in enumerate(zip(lines, texts, strict=True)):
        [found] = json.loads(line)["step_scores"]
        assert found == pytest.approx(model.score(None, f"{k}: 2 + 3?", steps), abs=1e-6)
    found = json.loads((out / "results.json").read_text())["rows"]["model"]
    assert found["all steps"]["auroc"]["value"] in (0.0, 0.5, 1.0)  # two right steps, one wrong


def test_several_images_of_a_record_are_all_seen(run, tmp_path):
    one, other = visual_records(own_records("test_mix", 2))
    several = {**one, "image": one["image"] + other["image"]}
    data, out = write(tmp_path / "test.jsonl", [several]), tmp_path / "out"
    assert evaluation.main(flags(run, "visualprocessbench", data, out)) == 0
    [found] = json.loads((out / "test" / "samples.jsonl").read_text())["step_scores"]
    model, steps = RewardModel.from_pretrained(run), one["response"]["steps"]
    images = [str(REPOSITORY / "data" / name) for name in several["image"]]
    assert found == pytest.approx(model.score(images, one["question"], steps), abs=1e-6)
    assert found != pytest.approx(model.score(images[:1], one["question"], steps), abs=1e-6)


def test_unusable_flags_are_one_line(run, tmp_path, capsys):
    data = write(tmp_path / "test.jsonl", visual_records(own_records("test_mix", 1)))
    command = flags(run, "visualprocessbench", data, tmp_path / "out")
    for more, expected in (
        (["--weights_path", str(tmp_path)], "holds no reward model"),
        (["--device", "cuda:99"], "--device cuda:99"),
        (["--data", str(data), str(tmp_path / "x" / "test.json")], "two files have the same name"),
        (["--benchmark", "other"], "invalid choice"),
    ):
        with pytest.raises(SystemExit) as exit:
            evaluation.main([*command, *more])
        assert exit.value.code == 2 and expected in capsys.readouterr().err
