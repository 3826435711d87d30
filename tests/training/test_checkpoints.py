"""Runs that are copied, killed, shared; checkpoints that are damaged, foreign or published."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import main as program
from benchmarks.kill_and_resume import COPIES
from reweighting.reward_model import RewardModel
from reweighting.selection import __main__ as selection
from reweighting.system.checkpoints import finding, fingerprint
from reweighting.system.checkpoints.finding import CheckpointError
from reweighting.system.files import DirectoryLock, FileError
from reweighting.training import presets
from reweighting.training.arguments import parse_arguments
from tests.conftest import REPOSITORY, TINY, command
from tests.training.test_training import assert_same_run, metrics_of, train, weights_of


@pytest.fixture(scope="module")
def half(dataset, tmp_path_factory) -> Path:
    """A run stopped after four of its seven steps."""
    return train(dataset, tmp_path_factory.mktemp("half") / "run", "--iteration_num", "4")


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory) -> Path:
    return train(dataset, tmp_path_factory.mktemp("whole") / "run", "--iteration_num", "7")


@pytest.fixture
def damaged(half, tmp_path) -> Path:
    """A copy of the run to damage."""
    shutil.copytree(half, tmp_path / "damaged", symlinks=True)
    return tmp_path / "damaged"


def state(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# --- copies -------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", COPIES)
def test_a_copied_run_goes_on_bit_for_bit(dataset, half, whole, tmp_path, capsys, way):
    copy, before = tmp_path / "copy", state(half)
    COPIES[way](half, copy)
    train(dataset, copy, "--resume", "--iteration_num", "7")
    assert "going on from step 4" in capsys.readouterr().out
    assert state(half) == before
    assert_same_run(copy, whole)  # through the names at the top: links again
    assert finding.current(copy).name == "step-00000007"
    assert RewardModel.from_pretrained(copy).LN.weight.equal(weights_of(whole)["weight"])


@pytest.mark.parametrize("way", COPIES)
def test_a_copied_model_is_opened_as_it_is(half, tmp_path, way):
    COPIES[way](half, tmp_path / "copy")
    model = RewardModel.from_pretrained(tmp_path / "copy")
    assert model.LN.weight.equal(weights_of(half)["weight"])
    assert fingerprint.fingerprint(tmp_path / "copy") == fingerprint.fingerprint(half)


def test_a_file_system_without_links_gets_texts(dataset, half, whole, tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    run = train(dataset, tmp_path / "run", "--iteration_num", "4")
    assert (run / "LN_weights.pt").read_text() == "checkpoint/LN_weights.pt"
    train(dataset, run, "--resume", "--iteration_num", "7")
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000007"]
    ours, theirs = weights_of(finding.current(run)), weights_of(whole)
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert metrics_of(run) == metrics_of(whole)
    assert RewardModel.from_pretrained(run).LN.weight.equal(theirs["weight"])


def test_an_incomplete_newest_checkpoint_is_passed_over_and_kept(
    dataset, damaged, whole, tmp_path, capsys
):
    newer = damaged / "checkpoints" / "step-00000006"
    shutil.copytree(whole / "checkpoints" / "step-00000007", newer)
    os.truncate(newer / "trainer_state.pt", 1000)  # of another run: not ours to delete
    train(dataset, damaged, "--resume", "--iteration_num", "7")
    said = capsys.readouterr()
    assert "step-00000006: trainer_state.pt has 1,000 bytes instead of" in said.err
    assert "going on from step 4" in said.out and newer.is_dir()
    assert_same_run(damaged, whole)


def test_what_is_not_ours_is_left_alone(dataset, damaged, whole):
    strays = [".DS_Store", "checkpoints/.DS_Store", "checkpoints/notes.txt", "mine/file"]
    for name in strays:
        (damaged / name).parent.mkdir(exist_ok=True)
        (damaged / name).write_text("kept")
    (damaged / "checkpoints" / "step-00000003.unfinished").mkdir()
    (damaged / "LN_weights.pt").unlink()
    (damaged / "LN_weights.pt").write_text("a file of the user's in the place of a link")
    train(dataset, damaged, "--resume", "--iteration_num", "7")
    assert all((damaged / name).read_text() == "kept" for name in strays)
    assert (damaged / "LN_weights.pt.kept-1").read_text().startswith("a file of the user's")
    assert not list((damaged / "checkpoints").glob("*.unfinished"))
    assert_same_run(damaged, whole)


def test_resume_refuses_where_nothing_is_complete(dataset, damaged, capsys):
    (damaged / "checkpoints" / "step-00000004" / "arguments.json").unlink()
    before = state(damaged)
    flags = command(dataset, damaged, "--resume", "--iteration_num", "7")
    assert program.main(flags) == 2
    said = capsys.readouterr().err
    assert "arguments.json is missing" in said and "a run without --resume" in said
    assert program.main(command(dataset, damaged)) == 2  # and a fresh run does not overwrite it
    assert "already holds a reward model" in capsys.readouterr().err
    assert state(damaged) == before


# --- locks and full disks -----------------------------------------------------------------------


HOLDER = """
import sys, time
from multiprocessing import get_context
from reweighting.system.files import DirectoryLock
lock = DirectoryLock(sys.argv[1])
child = get_context("fork").Process(target=time.sleep, args=(3,))  # as a data worker
child.start()
print("held", flush=True)
time.sleep(60)
"""


def test_a_directory_belongs_to_one_process_until_it_dies(dataset, half, tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "out"
    (tmp_path / "few.json").write_text(
        json.dumps(json.loads((REPOSITORY / "data" / "test_mix.json").read_text())[:1])
    )
    select = [
        *("--weights_path", str(half), "--candidates", str(tmp_path / "few.json")),
        *("--output_dir", str(out), "--image_root", str(REPOSITORY / "data"), "--device", "cpu"),
    ]
    for folder, call in (
        (run, lambda: program.main(command(dataset, run, "--iteration_num", "2"))),
        (out, lambda: selection.main(select)),
    ):
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(folder)], cwd=REPOSITORY, stdout=subprocess.PIPE
        )
        assert holder.stdout.readline() == b"held\n"
        assert call() == 2
        assert f"error: {folder} is in use by another process\n" in capsys.readouterr().err
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert call() == 0
    with DirectoryLock(run), pytest.raises(FileError, match="in use"):
        DirectoryLock(run)


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
import main
sys.exit(main.main(sys.argv[2:]))
"""


def test_a_full_disk_leaves_the_checkpoint_before(dataset, damaged, whole):
    """A limit on the size of files: writing fails as on a full disk."""
    before = state(finding.current(damaged))
    flags = command(dataset, damaged, "--resume", "--iteration_num", "7")
    for limit in (1_000_000, 8_000_000):  # in the model's file, in the trainer's state
        done = subprocess.run(
            [sys.executable, "-c", LIMITED, str(limit), *flags],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        assert "the checkpoint of step 7 could not be written" in done.stderr
        assert "step-00000004 is as it was" in done.stderr
        assert state(finding.current(damaged)) == before
        assert [p.name for p in (damaged / "checkpoints").iterdir()] == ["step-00000004"]
    train(dataset, damaged, "--resume", "--iteration_num", "7")
    assert_same_run(damaged, whole)


# --- damage ---------------------------------------------------------------------------------------


class Payload:
    """Would leave a mark if it was unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def errors(capsys) -> list[str]:
    """The lines on standard error that are no warnings."""
    lines = capsys.readouterr().err.splitlines()
    return [line for line in lines if not line.startswith("warning: ")]


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def overwrite(path: Path) -> None:
    path.write_bytes(b"not what it should be \xff" * 50)


def pickled(path: Path) -> None:
    torch.save({"weight": Payload(path.with_name("executed"))}, path)


def foreign(path: Path) -> None:
    torch.save({"weight": torch.zeros(1, 7), "bias": torch.zeros(1)}, path)


@pytest.mark.parametrize(
    "name, damage",
    [
        ("LN_weights.pt", truncate),
        ("LN_weights.pt", overwrite),
        ("LN_weights.pt", pickled),
        ("LN_weights.pt", foreign),
        ("LN_weights.pt", os.unlink),
        ("score_head.json", truncate),
        ("score_head.json", overwrite),
        ("base_model/model.safetensors", truncate),
        ("base_model/model.safetensors", overwrite),
        ("base_model/model.safetensors", os.unlink),
        ("base_model/config.json", truncate),
        ("base_model/config.json", os.unlink),
        ("base_model/processor_config.json", truncate),
        ("base_model/tokenizer.json", truncate),
    ],
)
def test_a_damaged_model_is_named_everywhere(dataset, half, tmp_path, capsys, name, damage):
    model = tmp_path / "model"
    shutil.copytree(half / "checkpoints" / "step-00000004", model)
    damage(model / name)
    with pytest.raises(CheckpointError, match=str(model)):
        RewardModel.from_pretrained(model)
    run = tmp_path / "run"
    for more in (["--dry_run"], []):
        assert program.main(command(dataset, run, "--reward_model", str(model), *more)) == 2
        [said] = errors(capsys)
        assert said.startswith("error: ") and str(model) in said
    assert not run.exists()
    few = tmp_path / "few.json"
    few.write_text(json.dumps(json.loads((REPOSITORY / "data" / "test_mix.json").read_text())[:1]))
    flags = [
        *("--weights_path", str(model), "--candidates", str(few), "--device", "cpu"),
        *("--output_dir", str(tmp_path / "out"), "--image_root", str(REPOSITORY / "data")),
    ]
    assert selection.main(flags) == 2
    said = capsys.readouterr().err
    assert "error: " in said and str(model) in said and "Traceback" not in said
    assert not list(tmp_path.rglob("executed"))


@pytest.mark.parametrize("name", ["trainer_state.pt", "arguments.json"])
@pytest.mark.parametrize("damage", [truncate, overwrite, pickled, foreign])
def test_a_damaged_state_is_named(dataset, damaged, capsys, name, damage):
    folder = finding.current(damaged)
    (folder / finding.MANIFEST_FILE).unlink()  # as if written before there were manifests
    damage(folder / name)
    assert program.main(command(dataset, damaged, "--resume", "--iteration_num", "7")) == 2
    said = capsys.readouterr().err
    assert "error: " in said and str(folder / name) in said and "Traceback" not in said
    assert not list(damaged.rglob("executed"))


# --- weights that do not load ---------------------------------------------------------------------


def without_a_layer(weights):
    return {name: value for name, value in weights.items() if "layers.1." not in name}


def with_a_prefix(weights):
    return {f"module.{name}": value for name, value in weights.items()}


def cut(weights):
    return {n: v[:, :64].contiguous() if "down_proj" in n else v for n, v in weights.items()}


@pytest.mark.parametrize(
    "change, expected",
    [
        (without_a_layer, "12 of 81 weights are missing"),
        (with_a_prefix, "81 of 81 weights are missing"),
        (cut, "weights have another shape"),
    ],
)
def test_weights_that_do_not_fit_are_refused(dataset, tmp_path, capsys, change, expected):
    model = tmp_path / "model"
    shutil.copytree(TINY, model)
    file = model / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=expected):
        RewardModel.from_pretrained(model, fresh_head=True)
    for more in (["--dry_run"], []):
        flags = command(dataset, tmp_path / "run", "--reward_model", str(model), *more)
        assert program.main(flags) == 2
        [said] = errors(capsys)
        assert expected in said and "(model." in said
    assert not (tmp_path / "run").exists()


def test_names_of_transformers_4_still_load(dataset, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(TINY, model)
    file = model / "model.safetensors"
    old = {
        name.replace("model.visual.", "visual.").replace("model.language_model.", "model."): value
        for name, value in load_file(file).items()
    }
    save_file(old, file, {"format": "pt"})
    assert program.main(command(dataset, tmp_path / "run", "--reward_model", str(model))) == 0


def test_a_missing_model_and_a_missing_head_are_said(half, tmp_path):
    with pytest.raises(CheckpointError, match="none: there is no such directory"):
        RewardModel.from_pretrained(tmp_path / "none")
    with pytest.warns(UserWarning, match="no trained reward head"):
        RewardModel.from_pretrained(TINY)
    (tmp_path / "text").mkdir()
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        RewardModel.from_pretrained(tmp_path / "text")


# --- from the published code ----------------------------------------------------------------------


@pytest.fixture
def published(half, tmp_path) -> Path:
    """What the published code writes: base_model without a processor, head, bare weights."""
    folder = tmp_path / "published"
    folder.mkdir()
    shutil.copytree(half / "base_model", folder / "base_model")
    for path in (folder / "base_model").iterdir():
        if path.name not in ("config.json", "generation_config.json", "model.safetensors"):
            path.unlink()
    shutil.copyfile(half / "LN_weights.pt", folder / "LN_weights.pt")
    raw = torch.tensor([0.5, -0.5, 0.0])
    torch.save({"raw_weights": raw}, folder / "domain_weights.pt")
    return folder


def name_base(folder: Path, base: str) -> None:
    path = folder / "base_model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_name_or_path": base}))


def test_a_published_checkpoint_finds_its_processor(dataset, half, published, tmp_path, capsys):
    flags = command(dataset, tmp_path / "run", "--reward_model", str(published), "--dry_run")
    for base in (None, str(tmp_path / "gone" / "base")):
        if base:
            name_base(published, base)
        assert program.main(flags) == 2
        [said] = errors(capsys)
        assert "holds no processor" in said and "copy preprocessor_config.json" in said
        assert "--processor" in said
        with pytest.raises(CheckpointError, match="holds no processor"):
            RewardModel.from_pretrained(published)
    expected = weights_of(half)["weight"]
    assert RewardModel.from_pretrained(published, processor=str(TINY)).LN.weight.equal(expected)
    assert program.main([*flags, "--processor", str(TINY)]) == 0
    name_base(published, str(TINY))
    with pytest.warns(UserWarning, match="taking that of its base model"):
        assert RewardModel.from_pretrained(published).LN.weight.equal(expected)
    capsys.readouterr()
    train(dataset, tmp_path / "run", "--reward_model", str(published), "--iteration_num", "2")
    assert capsys.readouterr().err.count("taking that of its base model") == 1
    RewardModel.from_pretrained(tmp_path / "run")  # holds the processor from here on


def test_domain_weights_are_taken_over_when_asked_for(dataset, published, tmp_path, capsys):
    name_base(published, str(TINY))
    still = ["--iteration_num", "2", "--meta_lr", "1e-9", "--reward_model", str(published)]
    run = train(dataset, tmp_path / "without", *still)
    assert weights_of(run)["raw_weights"].abs().max() < 1e-6
    assert "domain weights start at 1; --init_domain_weights" in capsys.readouterr().out
    for source in (published, published / "domain_weights.pt"):
        run = train(
            dataset, tmp_path / f"from-{source.name}", *still, "--init_domain_weights", str(source)
        )
        assert weights_of(run)["raw_weights"].tolist() == pytest.approx([0.5, -0.5, 0], abs=1e-6)
        said = capsys.readouterr().out
        assert "taken in order" in said and "chart 1.3" in said
    named = {"raw_weights": torch.tensor([1.0, 2.0]), "domains": ["map", "unknown"]}
    torch.save(named, tmp_path / "named.pt")
    flags = [*still, "--init_domain_weights", str(tmp_path / "named.pt")]
    assert weights_of(train(dataset, tmp_path / "named", *flags))[
        "raw_weights"
    ].tolist() == pytest.approx([0, 0, 1.0], abs=1e-6)


@pytest.mark.parametrize(
    "content, expected",
    [
        ({"raw_weights": torch.zeros(2)}, "2 weights without names, the train file has 3"),
        ({"raw_weights": torch.zeros(2), "domains": ["a"]}, "not as many names"),
        ({"raw_weights": torch.zeros(1), "domains": ["a"]}, "none of the train file's domains"),
        ({"raw_weights": torch.tensor([0, torch.nan, 0])}, "finite numbers"),
        ({"other": 1}, "holds no 'raw_weights'"),
    ],
)
def test_wrong_domain_weights_are_refused(dataset, tmp_path, capsys, content, expected):
    torch.save(content, tmp_path / "weights.pt")
    flags = ["--init_domain_weights", str(tmp_path / "weights.pt"), "--dry_run"]
    assert program.main(command(dataset, tmp_path / "run", *flags)) == 2
    assert expected in capsys.readouterr().err
    with pytest.raises(SystemExit):
        program.main(command(dataset, tmp_path / "run", *flags, "--baseline"))


# --- presets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", presets.PRESETS)
def test_a_preset_is_set_printed_and_overruled(dataset, tmp_path, capsys, name):
    needed = [
        *("--train_json_file", str(dataset / "train.json"), "--meta_json_file", "meta.json"),
        *("--weights_path", str(tmp_path / "run"), "--dry_run"),
    ]
    arguments = parse_arguments([*needed, "--preset", name])
    printed = capsys.readouterr().out
    assert printed.startswith(f"--preset {name}: --reward_model ")
    wanted = {
        "paper": {"loss": "mse", "weight_decay": 0, "meta_weight_decay": 1e-3, "unroll_steps": 5},
        "paper-1.5": {"reweighting": "instance_table", "iteration_num": 100000, "lr": 5e-5},
        "demo": {"batch_by": "cot", "meta_lr": 0.05, "precision": "fp32"},
    }[name]
    assert {field: getattr(arguments, field) for field in wanted} == wanted
    for flags in (["--lr", "3e-3", "--preset", name], ["--preset", name, "--lr", "3e-3"]):
        assert parse_arguments([*needed, *flags]).lr == 3e-3
