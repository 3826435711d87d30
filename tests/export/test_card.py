"""The model card of a run, the upload, and what the command refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, metadata_load

import main as program
from reweighting.export import __main__ as export
from reweighting.export import card
from reweighting.export.recipe import recipe
from reweighting.system.files import FileError
from tests.conftest import DOMAINS, command
from tests.export.runs import exported, open_run, our_log_odds, picture, their_log_odds


def trained(dataset: Path, run: Path, *flags: str) -> Path:
    assert program.main(command(dataset, run, "--iteration_num", "3", *flags)) == 0
    return run


@pytest.fixture(scope="module")
def lora_run(dataset, tmp_path_factory) -> Path:
    """A run with adapters and learned domain weights."""
    folder = tmp_path_factory.mktemp("lora")
    return trained(dataset, folder / "run", "--lora_rank", "2", "--lr", "1e-3")


@pytest.fixture(scope="module")
def output(lora_run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    return exported(lora_run, folder, "--for", "transformers")


def card_of(run: Path) -> str:
    made = recipe(open_run(run))
    return card.model_card(run, made, "transformers", card.use_in_transformers(made))


def test_a_trained_run_scores_the_same(lora_run, output, tmp_path):
    image = picture(tmp_path / "image.png")
    [theirs] = their_log_odds([output], image, tmp_path)
    assert theirs["single"] == pytest.approx(our_log_odds(lora_run, image), abs=1e-5)


def test_the_hub_can_read_the_card(output):
    """As far as that goes without the hub, whose own validation takes a connection."""
    found = ModelCard.load(output / "README.md")
    assert found.data.to_dict() == metadata_load(output / "README.md")
    assert found.data.library_name == "transformers"
    assert found.data.pipeline_tag == "image-text-to-text"
    assert "process-reward-model" in found.data.tags and found.data.base_model is None
    for part in ("Use", "Training", "Intended use", "Limits", "Citation"):
        assert f"\n## {part}\n" in found.text
    assert "2505.20241" in found.text and "2509.05542" in found.text


def test_the_card_tells_the_run(lora_run, output, dataset):
    text = (output / "README.md").read_text()
    weights = json.loads((lora_run / "domain_weights.json").read_text())
    assert weights.keys() == set(DOMAINS)
    for domain, weight in weights.items():
        assert f"| {domain} | {weight:.3f} |" in text
    last = json.loads((lora_run / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"| `loss` | {last['loss']:.4g} |" in text
    assert "| `train_json_file` | train.json |" in text and "| `lora_rank` | 2 |" in text
    assert str(dataset) not in text and str(lora_run.parent) not in text


def test_the_card_tells_weights_of_records_and_validation(dataset, tmp_path):
    run = trained(dataset, tmp_path / "run", "--reweighting", "instance_table")
    (run / "evaluations.jsonl").write_text('{"iteration": 3, "accuracy": 0.75, "questions": 8}\n')
    text = card_of(run)
    assert "| domain | records trained with | mean weight | smallest | largest |" in text
    assert all(f"\n| {domain} | " in text for domain in DOMAINS)
    assert "| share of right picks on 8 validation questions | 0.75 |" in text
    steps = {"steps": 90, "auroc": 0.625, "macro_f1": 0.5}
    (run / "evaluations.jsonl").write_text(json.dumps({"iteration": 3, "steps": steps}) + "\n")
    text = card_of(run)
    assert "| AUROC of validation steps | 0.625 |" in text and "validation questions" not in text
    assert "| macro-F1 at 0.5 of validation steps | 0.5 |" in text


def test_the_card_of_a_bare_model_says_what_is_not_known(lora_run, tmp_path):
    for name in ("base_model", "LN_weights.pt", "score_head.json"):
        (tmp_path / name).symlink_to((lora_run / name).resolve())
    text = card_of(tmp_path)
    assert "The run does not say on which data." in text and "None were recorded." in text
    assert "every record counted the same, or the run does not say" in text


@pytest.mark.parametrize(
    "base, expected",
    [("Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2-VL-2B-Instruct"), ("a|b/c", None), ("models", None)],
)
def test_only_a_name_on_the_hub_is_the_base_model(lora_run, tmp_path, base, expected):
    for name in ("base_model", "LN_weights.pt", "score_head.json"):
        (tmp_path / name).symlink_to((lora_run / name).resolve())
    (tmp_path / "arguments.json").write_text(json.dumps({"reward_model": base}))
    assert ModelCard(card_of(tmp_path)).data.base_model == expected


class Hub:
    """Stands in for ``huggingface_hub.HfApi``: no test uploads anything."""

    def __init__(self, refusal: Exception | None = None) -> None:
        self.calls: list[tuple[str, dict]] = []
        self.refusal = refusal

    def create_repo(self, name: str, **options) -> None:
        if self.refusal:
            raise self.refusal
        self.calls.append(("create_repo", {"name": name, **options}))

    def upload_folder(self, **options) -> None:
        self.calls.append(("upload_folder", options))


def test_the_folder_is_uploaded_whole(lora_run, tmp_path, monkeypatch):
    hub, folder = Hub(), tmp_path / "out"
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    exported(lora_run, folder, "--for", "transformers", "--push_to_hub", "someone/prm")
    assert hub.calls == [
        ("create_repo", {"name": "someone/prm", "private": True, "exist_ok": True}),
        ("upload_folder", {"repo_id": "someone/prm", "folder_path": folder}),
    ]


def test_a_refused_upload_says_where_the_folder_is(tmp_path):
    with pytest.raises(FileError, match=r"someone/prm: could not be uploaded: no; .* is written"):
        export.push(tmp_path, "someone/prm", Hub(ConnectionError("no")))


def test_there_is_nothing_to_upload_where_vllm_reads_the_run(dataset, tmp_path, capsys):
    run = trained(dataset, tmp_path / "run", "--score_head", "plus_minus")
    arguments = ["--weights_path", str(run), "--output", str(tmp_path / "out"), "--for", "vllm"]
    assert export.main([*arguments, "--push_to_hub", "someone/prm"]) == 2
    assert "vLLM needs no weights beside the run's own" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_unusable_flags_end_in_one_line(lora_run, tmp_path, capsys):
    def refusal(run: Path, output: Path, *flags: str) -> str:
        arguments = ["--weights_path", str(run), "--output", str(output), "--for", "transformers"]
        with pytest.raises(SystemExit) as stop:
            export.main([*arguments, *flags])
        assert stop.value.code == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        return said

    empty, full = tmp_path / "empty", tmp_path / "full"
    empty.mkdir()
    full.mkdir()
    (full / "notes.txt").touch()
    assert "empty holds no reward model (base_model/)" in refusal(empty, tmp_path / "out")
    assert "full is not empty" in refusal(lora_run, full)
    assert "notes.txt cannot be written" in refusal(lora_run, full / "notes.txt")
    assert "--push_to_hub: " in refusal(lora_run, empty, "--push_to_hub", "no name!")
    assert list(full.iterdir()) == [full / "notes.txt"]
