"""main.py from end to end: outputs, resumption, signals, and an effect for every flag."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

import main as program
from reweighting.bilevel.weighting import DomainTable
from reweighting.reward_model import RewardModel
from reweighting.system.checkpoints import finding, opening, weight_tables
from reweighting.training.arguments import build_parser
from tests.conftest import DOMAINS, REPOSITORY, TINY, command

TIMES = ("samples_per_second", "peak_memory_gib", "waiting")


def train(dataset: Path, weights_path: Path, *flags: str) -> Path:
    """One run within this process."""
    assert program.main(command(dataset, weights_path, *flags)) == 0
    return weights_path


def start(dataset: Path, weights_path: Path, *flags: str) -> subprocess.Popen:
    """One run in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "main.py", *command(dataset, weights_path, *flags)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        start_new_session=True,
    )


def group_of(process: subprocess.Popen) -> list[str]:
    """The processes of a run that still exist: itself and its data workers."""
    found = subprocess.run(["pgrep", "-g", str(process.pid)], capture_output=True, text=True)
    return found.stdout.split()


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    """Every learned number of a run."""
    state = load_file(run / "base_model" / "model.safetensors")
    state |= torch.load(run / "LN_weights.pt", weights_only=True)
    if (run / "domain_weights.pt").exists():
        state |= torch.load(run / "domain_weights.pt", weights_only=True)["module"]
    return state


def metrics_of(run: Path) -> list[dict]:
    """The lines of metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def assert_same_run(left: Path, right: Path) -> None:
    ours, theirs = weights_of(left), weights_of(right)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
    assert metrics_of(left) == metrics_of(right)


@pytest.fixture(scope="module")
def finished(dataset, tmp_path_factory) -> Path:
    """The uninterrupted run the others are compared with."""
    return train(dataset, tmp_path_factory.mktemp("finished") / "run", "--iteration_num", "11")


def test_outputs_have_the_published_names_and_open_anywhere(finished):
    AutoProcessor.from_pretrained(finished / "base_model")
    AutoModelForImageTextToText.from_pretrained(finished / "base_model")
    head = torch.load(finished / "LN_weights.pt", weights_only=True)
    assert head.keys() == {"weight", "bias"} and head["weight"].dtype == torch.float32
    saved = torch.load(finished / "domain_weights.pt", weights_only=True)
    assert saved["domains"] == DOMAINS and saved["module"]["raw_weights"].shape == (3,)
    weights = json.loads((finished / "domain_weights.json").read_text())
    assert list(weights) == DOMAINS
    assert json.loads((finished / "arguments.json").read_text())["lr"] == 1e-4
    scored = RewardModel.from_pretrained(finished, device="cpu")
    assert torch.equal(scored.LN.weight, head["weight"])


def test_metrics_log_losses_and_every_weight(finished):
    lines = metrics_of(finished)
    assert [line["iteration"] for line in lines] == list(range(1, 12))
    assert lines[0]["meta_loss"] is None and lines[1]["meta_loss"] > 0
    for line in lines:
        assert sum(line["weights"].values()) / 3 == pytest.approx(1, abs=5e-4)
        assert set(line["domain_loss"]) <= set(DOMAINS) and line["domain_loss"]
    assert lines[-1]["weights"] != lines[0]["weights"]
    assert lines[1]["hypergradient_norm"] > 0
    assert set(lines[-1]["signal_to_noise"]) == set(lines[-1]["sign_agreement"]) == set(DOMAINS)
    assert lines[-1]["parameters_moved"] > 0.99
    average = json.loads((finished / "domain_weights_average.json").read_text())
    assert list(average) == DOMAINS and sum(average.values()) / 3 == pytest.approx(1)


def test_a_resumed_run_equals_the_uninterrupted_one(dataset, finished, tmp_path):
    """Stopped twice mid-epoch and between two upper steps, with other numbers of workers."""
    run = train(dataset, tmp_path / "run", "--iteration_num", "3")
    train(dataset, run, "--resume", "--iteration_num", "8", "--num_workers", "2")
    train(dataset, run, "--resume", "--iteration_num", "11", "--num_workers", "1")
    assert_same_run(run, finished)
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step-00000011"]
    before = weights_of(run)
    train(dataset, run, "--resume", "--iteration_num", "11")  # nothing is left to do
    assert all(torch.equal(value, before[name]) for name, value in weights_of(run).items())


def test_a_run_resumes_between_upper_steps_with_all_batches(dataset, tmp_path):
    flags = ["--hypergradient_batches", "all", "--unroll_steps", "4", "--iteration_num"]
    whole = train(dataset, tmp_path / "whole", *flags, "8")
    run = train(dataset, tmp_path / "run", *flags, "6")
    assert_same_run(train(dataset, run, "--resume", *flags, "8"), whole)


def wait_for_checkpoint(run: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not finding.exists(run):
        assert process.poll() is None, process.stdout.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_killed_run_resumes_bit_for_bit(dataset, tmp_path):
    flags = ["--iteration_num", "40", "--num_workers", "2", "--save_every_iterations", "3"]
    run = tmp_path / "killed"
    process = start(dataset, run, *flags)
    wait_for_checkpoint(run, process)
    assert len(group_of(process)) > 2
    process.kill()
    process.wait()
    until = time.monotonic() + 20
    while group_of(process) and time.monotonic() < until:
        time.sleep(0.2)
    assert not group_of(process)  # the data workers end with their parent
    stopped_at = opening.load_state(run)["iteration"]
    assert 0 < stopped_at < 40 and stopped_at % 3 == 0
    # A kill can also tear the line being written and leave a half-written checkpoint behind.
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 39, "loss": 0.')
    (run / "checkpoints" / "step-00000039.unfinished").mkdir()
    resumed = start(dataset, run, *flags, "--resume")
    assert resumed.wait(timeout=300) == 0, resumed.stdout.read().decode()
    whole = start(dataset, tmp_path / "whole", *flags)
    assert whole.wait(timeout=300) == 0
    assert_same_run(run, tmp_path / "whole")


def test_a_kill_between_the_links_of_the_first_checkpoint_loses_nothing(dataset, tmp_path):
    run = train(dataset, tmp_path / "run", "--iteration_num", "4")
    before = weights_of(run)
    for name in ("base_model", "LN_weights.pt", "domain_weights.pt"):
        (run / name).unlink()
    train(dataset, run, "--resume", "--iteration_num", "4")
    assert all(torch.equal(value, before[name]) for name, value in weights_of(run).items())


@pytest.mark.parametrize("send", [os.kill, os.killpg])
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_save_and_exit_with_the_usual_code(dataset, tmp_path, number, code, send):
    """To the process alone, as ``kill`` does, or to all of its group, as terminals and Slurm do."""
    run = tmp_path / "run"
    flags = ["--iteration_num", "2000", "--save_every_iterations", "2", "--num_workers", "1"]
    process = start(dataset, run, *flags)
    wait_for_checkpoint(run, process)
    send(process.pid, number)
    assert process.wait(timeout=60) == code, process.stdout.read().decode()
    assert not group_of(process)
    state = opening.load_state(run)
    assert 0 < state["iteration"] < 2000
    assert RewardModel.from_pretrained(run).LN.weight.isfinite().all()


def test_resume_without_a_checkpoint_is_refused(dataset, tmp_path, capsys):
    for more in ([], ["--dry_run"]):
        assert program.main(command(dataset, tmp_path / "mistyped", "--resume", *more)) == 2
        said = capsys.readouterr().err
        assert "mistyped does not exist" in said and "a run without --resume" in said
    assert not (tmp_path / "mistyped").exists()


def test_a_published_checkpoint_is_a_starting_point(dataset, finished, tmp_path):
    """base_model/, LN_weights.pt and domain_weights.pt as the published code writes them."""
    published = tmp_path / "published"
    model = RewardModel.from_pretrained(finished, device="cpu")
    torch.nn.init.constant_(model.LN.weight, 0.25)
    model.save_pretrained(published)
    raw = torch.tensor([0.5, -0.5, 0.0])
    torch.save({"module": {"raw_weights": raw}, "optimizer": {}}, published / "domain_weights.pt")
    run = train(
        dataset,
        tmp_path / "run",
        *("--reward_model", str(published), "--iteration_num", "2", "--lr", "1e-12"),
        *("--meta_lr", "1e-9", "--weight_decay", "0", "--init_domain_weights", str(published)),
    )
    state = weights_of(run)
    torch.testing.assert_close(state["raw_weights"], raw)
    torch.testing.assert_close(state["weight"], model.LN.weight.data)


def test_a_trained_model_makes_its_prompts_as_in_training(dataset, tmp_path):
    run = train(dataset, tmp_path / "run", "--max_image_size", "56", "--max_pixels", "3136")
    for folder in (run, run / "checkpoint"):
        encoder = RewardModel.from_pretrained(folder).encoder
        assert (encoder.max_image_size, encoder.max_pixels) == (56, 3136)
    assert RewardModel.from_pretrained(run, max_image_size=84).encoder.max_image_size == 84


def test_domain_weights_are_matched_by_name(tmp_path):
    path = tmp_path / "domain_weights.pt"
    torch.save({"module": {"raw_weights": torch.tensor([1.0, 2.0])}, "domains": ["a", "b"]}, path)
    assert weight_tables.load_domain_weights(path, ["b", "c", "a"]).tolist() == [2.0, 0.0, 1.0]
    torch.save({"raw_weights": torch.tensor([1.0, 2.0])}, path)
    with pytest.raises(ValueError, match="2 weights without names, the train file has 3"):
        weight_tables.load_domain_weights(path, ["a", "b", "c"])


def test_domain_weights_of_a_json_file_come_back(dataset, tmp_path):
    path = tmp_path / "domain_weights.json"
    wanted = {"chart": 0.25, "table": 2.5, "map": 0.25}
    path.write_text(json.dumps(wanted))
    weighting = DomainTable([*wanted])
    weighting.raw_weights.data = weight_tables.load_domain_weights(path, weighting.domains)
    assert weighting.named_weights() == pytest.approx(wanted)
    # As from a domain_weights.pt, a domain that it does not name starts as one of the average.
    assert weight_tables.load_domain_weights(path, ["new", "map"])[0] == 0
    for weight in (0, 1e-20, 2.9):
        path.write_text(json.dumps({"a": weight, "b": 1e3, "c": 1}))
        weighting = DomainTable(["a", "b", "c"])
        weighting.raw_weights.data = weight_tables.load_domain_weights(path, weighting.domains)
        found = weighting.named_weights()
        assert found["a"] == pytest.approx(weight * 3 / (1001 + weight), rel=1e-4, abs=1e-29)

    path.write_text(json.dumps(wanted))
    still = ("--iteration_num", "2", "--meta_lr", "1e-9", "--init_domain_weights", str(path))
    run = train(dataset, tmp_path / "run", *still)
    found = json.loads((run / "domain_weights.json").read_text())
    assert found == pytest.approx(wanted, rel=1e-4)
    path.write_text(json.dumps({"elsewhere": 1}))
    with pytest.raises(ValueError, match="holds none of the train file's domains"):
        weight_tables.load_domain_weights(path, ["a"])


def test_the_baseline_trains_without_weights(dataset, tmp_path):
    run = train(dataset, tmp_path / "run", "--baseline")
    assert not (run / "domain_weights.pt").exists()
    assert "weights" not in metrics_of(run)[0]


def test_fixed_domain_weights_are_used_and_not_learned(dataset, tmp_path):
    weights = tmp_path / "weights.json"
    weights.write_text(json.dumps({"chart": 3, "table": 0, "map": 3, "unknown": 9}))
    flags = ["--domain_weights", str(weights), "--weight_decay", "0"]
    run = train(dataset, tmp_path / "run", *flags)
    assert not (run / "domain_weights.pt").exists()
    baseline = train(dataset, tmp_path / "baseline", "--baseline", "--weight_decay", "0")
    ours, theirs = weights_of(run), weights_of(baseline)
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)
    for line in metrics_of(run):  # a batch of the domain with weight 0 alone would weigh nothing
        if set(line["domain_loss"]) == {"table"}:
            assert line["weighted_loss"] == 0


@pytest.mark.parametrize(
    "content, expected",
    [
        ('{"chart": 1, "map": 1}', "domain 'table' of the train file is missing"),
        ('{"chart": 1, "map": -1, "table": 1}', "domain 'map': must be a number of at least 0"),
        ('{"chart": 0, "map": 0, "table": 0}', "all weights are 0"),
        ("[1, 2]", "not an object"),
        ("{", "Expecting"),
    ],
)
def test_bad_domain_weights_are_refused(dataset, tmp_path, capsys, content, expected):
    (tmp_path / "weights.json").write_text(content)
    flags = ["--domain_weights", str(tmp_path / "weights.json")]
    assert program.main(command(dataset, tmp_path / "run", *flags)) == 2
    assert expected in capsys.readouterr().err


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(dataset, tmp_path, capsys):
    run = tmp_path / "run"
    flags = ["--iteration_num", "40", "--save_every_iterations", "1", "--lr", "1e30"]
    assert program.main(command(dataset, run, *flags)) == 1
    said = capsys.readouterr().err
    assert "loss is nan for records [" in said and "Traceback" not in said
    kept = opening.load_state(run)["iteration"]
    assert kept == metrics_of(run)[-1]["iteration"]


EFFECTS = {
    "--batch_size": "2",
    "--meta_batch_size": "3",
    "--max_image_size": "56",
    "--min_pixels": "100000",
    "--max_pixels": "1000",
    "--iteration_num": "10",
    "--precision": "bf16",
    "--seed": "2",
    "--loss": "mse",
    "--lr": "2e-4",
    "--weight_decay": "0.5",
    "--scheduler_step_size": "2",
    "--gradiant_accumulation": "2",
    "--gradient_accumulation": "3",
    "--max_grad_norm": "0.01",
    "--meta_loss": "bce",
    "--meta_lr": "0.5",
    "--meta_weight_decay": "0.5",
    "--batch_by": "cot",
    "--unroll_steps": "3",
    "--hypergradient": "darts",
    "--hypergradient_batches": "all",
}


@pytest.mark.parametrize("flag", EFFECTS)
def test_every_numeric_flag_changes_what_is_learned(dataset, finished, tmp_path, flag):
    extra = ["--iteration_num", "11", flag, EFFECTS[flag]]
    run = train(dataset, tmp_path / "run", *extra)
    ours, theirs = weights_of(run), weights_of(finished)
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)


def test_max_epoch_and_gamma_change_the_run(dataset, finished, tmp_path):
    records = len(json.loads((dataset / "train.json").read_text()))
    run = train(dataset, tmp_path / "a", "--iteration_num", "1000", "--max_epoch", "1")
    assert metrics_of(run)[-1]["iteration"] == records // 3
    flags = ["--iteration_num", "6", "--scheduler_step_size", "2", "--scheduler_gamma", "0.1"]
    run = train(dataset, tmp_path / "b", *flags)
    rates = [line["learning_rate"] for line in metrics_of(run)]
    assert rates == pytest.approx([1e-4, 1e-5, 1e-5, 1e-6, 1e-6, 1e-7])


def test_logging_and_reports(dataset, tmp_path):
    run = train(dataset, tmp_path / "run", "--logging_steps", "4")
    assert [line["iteration"] for line in metrics_of(run)] == [4, 6]


def test_tensorboard_gets_every_metric(dataset, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(dataset, tmp_path / "run", "--report_to", "tensorboard")
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert {"loss", "meta_loss", "weights/chart"} <= set(events.Tags()["scalars"])


def test_wandb_is_optional_and_said_to_be_missing(dataset, tmp_path, capsys):
    import importlib.util

    if importlib.util.find_spec("wandb"):
        pytest.skip("wandb is installed")
    with pytest.raises(SystemExit) as exit:
        program.main(command(dataset, tmp_path / "run", "--report_to", "wandb"))
    assert exit.value.code == 2 and "pip install wandb" in capsys.readouterr().err


def test_dry_run_prints_the_plan_and_writes_nothing(dataset, tmp_path, capsys):
    program.main(command(dataset, tmp_path / "run", "--dry_run"))
    printed = capsys.readouterr().out
    for expected in (
        "chart",
        "tokens a train record",
        "lower steps                6",
        "peak memory",
    ):
        assert expected in printed
    model = RewardModel.from_pretrained(REPOSITORY / "weights" / "tiny-qwen2-vl")
    assert f"{sum(p.numel() for p in model.parameters()):,}" in printed
    assert not (tmp_path / "run").exists()


def test_help_lists_every_flag_with_its_default():
    text = " ".join(build_parser().format_help().split())
    documented = """--train_json_file --meta_json_file --weights_path --reward_model --iteration_num
        --batch_size --max_epoch --device --precision --strategy --seed --local_rank --lr --meta_lr
        --weight_decay --meta_weight_decay --scheduler_step_size --scheduler_gamma --unroll_steps
        --gradiant_accumulation --gradient_accumulation --save_every_iterations --meta_batch_size
        --loss --meta_loss --baseline --image_root --max_image_size --min_pixels --max_pixels
        --num_workers --resume --report_to --max_grad_norm --dry_run"""
    for flag in documented.split():
        assert flag in text
    for flag, default in (("--local_rank", "0"), ("--meta_weight_decay", "0.0"), ("--lr", "5e-07")):
        assert re.search(rf"{flag} [A-Z_]+ [^-]*\(default: {re.escape(default)}\)", text), flag
    defaults = build_parser().parse_args(
        ["--train_json_file", "t", "--meta_json_file", "m", "--weights_path", "w"]
    )
    assert (defaults.iteration_num, defaults.lr, defaults.meta_lr) == (10000, 5e-7, 0.01)
    assert (defaults.weight_decay, defaults.meta_weight_decay) == (1e-3, 0.0)
    assert (defaults.batch_size, defaults.unroll_steps, defaults.precision) == (1, 5, "bf16")
    assert (defaults.scheduler_step_size, defaults.scheduler_gamma) == (5000, 0.5)
    assert (defaults.save_every_iterations, defaults.max_epoch, defaults.seed) == (1000, 120, 1)


def test_a_dry_run_warns_of_prompts_beyond_the_models_positions(dataset, tmp_path, capsys):
    base = tmp_path / "base"
    shutil.copytree(TINY, base)

    def said(positions: int) -> tuple[str, str]:
        config = json.loads((base / "config.json").read_text())
        config["text_config"]["max_position_embeddings"] = positions
        (base / "config.json").write_text(json.dumps(config))
        flags = ("--dry_run", "--reward_model", str(base))
        assert program.main(command(dataset, tmp_path / "run", *flags)) == 0
        return capsys.readouterr()

    out, err = said(4096)
    assert "positions of the model" not in err
    median, longest = map(
        int, re.search(r"a train record +median (\d+), longest (\d+)", out).groups()
    )
    assert median < longest
    _, err = said(median)
    long, all_of_them = map(
        int, re.search(r"(\d+) of the (\d+) train records looked", err).groups()
    )
    assert 0 < long <= all_of_them // 2
    assert f"more tokens than the {median} positions of the model" in err
    _, err = said(longest)
    assert "train records looked at" not in err


def test_figures_are_drawn_from_a_run(finished, dataset, tmp_path):
    from PIL import Image

    from reweighting.figures import __main__ as figures

    assert figures.main(["--weights_path", str(finished), "--output_dir", str(tmp_path)]) == 0
    for name in ("domain_weights.png", "weights_over_time.png", "losses.png"):
        with Image.open(tmp_path / name) as picture:
            assert len(picture.convert("RGB").getcolors(2**24)) > 10
    assert figures.main(["--weights_path", str(tmp_path / "none"), "--output_dir", "x"]) == 2


def test_the_page_of_flags_names_every_flag():
    page = (REPOSITORY / "docs" / "flags.md").read_text()
    for action in build_parser()._actions:
        for flag in action.option_strings:
            if flag.startswith("--") and flag != "--help":
                assert f"`{flag}`" in page, flag
