"""Numbers that tell a learned weight from a random walk, and whether anything moves at all."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings

import pytest
import torch
from PIL import Image
from torch import nn

import main as program
from reweighting.figures import __main__ as figures
from reweighting.figures.drawing import PALETTE, smoothed, spread
from reweighting.records.dataset import load_data
from reweighting.system.checkpoints import finding
from reweighting.training.arguments import parse_arguments
from reweighting.training.dry_run import advice, weight_reach
from reweighting.training.statistics import (
    ENOUGH_STEPS,
    WINDOW,
    MetaLosses,
    MovedShare,
    WeightHistory,
)
from tests.conftest import DOMAINS, REPOSITORY, command


def history(gradients: torch.Tensor) -> WeightHistory:
    found = WeightHistory()
    for number, gradient in enumerate(gradients):
        found.add(gradient, torch.full_like(gradient, float(number)))
    return found


def test_evidence_stands_out_from_chance():
    torch.manual_seed(0)
    gradients = torch.randn(100, 2)
    gradients[:, 0] += 1.0  # the first domain's have a mean of one standard deviation
    found = history(gradients)
    assert found.signal_to_noise()[0] == pytest.approx(10, rel=0.3)  # mean / (1 / √100)
    assert found.signal_to_noise()[1] < 2
    # 84 % of N(1, 1) are positive
    assert found.sign_agreement()[0] == pytest.approx(0.68, abs=0.15)
    assert found.sign_agreement()[1] < 0.3


def test_the_average_is_over_the_last_quarter():
    found = history(torch.zeros(40, 3))
    assert found.average().tolist() == pytest.approx([34.5] * 3)  # steps 30 to 39
    assert history(torch.zeros(1, 3)).average().tolist() == [0, 0, 0]


def test_a_history_survives_a_checkpoint(tmp_path):
    found = history(torch.randn(150, 4))
    torch.save(found.state_dict(), tmp_path / "state.pt")
    again = WeightHistory()
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(again.signal_to_noise(), found.signal_to_noise())
    assert torch.equal(again.average(), found.average()) and len(again) == 150


def test_the_moved_share_counts_what_moved():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 100))
    module[1].bias.requires_grad_(False)
    moved = MovedShare(module)
    assert moved.value() == 0
    with torch.no_grad():
        module[0].weight[:150] += 1
    assert moved.value() == pytest.approx(45_000 / (90_300 + 30_000), abs=0.01)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 1
    assert moved.value() == 1


def test_bf16_parameters_hardly_move_at_the_papers_rate():
    torch.manual_seed(0)

    def after_ten_steps(dtype: torch.dtype) -> float:
        module = nn.Linear(200, 200).to(dtype)
        moved, optimizer = MovedShare(module), torch.optim.AdamW(module.parameters(), lr=5e-7)
        for _ in range(10):
            module(torch.randn(8, 200, dtype=dtype)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        return moved.value()

    assert after_ten_steps(torch.float32) > 0.99
    assert after_ten_steps(torch.bfloat16) < 0.05


def test_no_ratio_rests_on_a_few_steps():
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of a deviation of one number
        for steps in (1, 2, ENOUGH_STEPS - 1):
            assert history(torch.randn(steps, 3)).signal_to_noise().isnan().all()
    assert history(torch.randn(ENOUGH_STEPS, 3)).signal_to_noise().isfinite().all()
    assert history(torch.randn(150, 3)).looked_back == WINDOW


def test_the_ranking_needs_as_many_steps_as_spread_and_noise_say():
    """Means 0.2 apart and noise of 1: 9 · 1 / 0.04 steps; not said before enough of them."""
    generator = torch.Generator().manual_seed(0)
    means = 0.2 * torch.tensor([-1.0, 1.0] * 50) * (99 / 100) ** 0.5
    found = history(means + torch.randn(WINDOW, 100, generator=generator))
    assert found.ranking().steps == pytest.approx(225, rel=0.25)
    assert found.ranking().after(found.looked_back) == pytest.approx(2, rel=0.2)
    assert history(torch.randn(ENOUGH_STEPS - 1, 3)).ranking() is None
    assert history(torch.zeros(ENOUGH_STEPS, 3)).ranking().steps is None


def meta_losses(score_of_right, score_of_wrong, steps=60, share=0.5, loss="mse") -> MetaLosses:
    """Losses of 4 chains a step whose scores scatter around two means."""
    torch.manual_seed(0)
    found = MetaLosses(share, loss)
    for _ in range(steps):
        true_false = (torch.rand(4) < share).float()
        mean = torch.where(true_false == 1, score_of_right, score_of_wrong)
        score = (mean + 0.1 * torch.randn(4)).clamp(0.01, 0.99)
        if loss == "mse":
            found.add((score - true_false).square(), true_false)
        else:
            found.add(nn.functional.binary_cross_entropy(score, true_false, reduction="none"),
                      true_false)  # fmt: skip
    return found


@pytest.mark.parametrize("loss, constant", [("mse", 0.21), ("bce", 0.6109)])
def test_a_meta_loss_at_chance_is_told_from_one_that_is_not(loss, constant):
    """One score for all has p (1 - p), or the entropy of p."""
    blind = meta_losses(0.3, 0.3, share=0.3, loss=loss).compared()
    assert blind.at_chance and blind.chains == 240
    assert blind.constant == pytest.approx(constant, abs=0.02)
    assert not meta_losses(0.6, 0.2, share=0.3, loss=loss).compared().at_chance
    worse = meta_losses(0.2, 0.6, share=0.3, loss=loss).compared()
    assert worse.at_chance and worse.loss > worse.constant
    # A base rate that is wrong is worse than one score for all, however sure of itself.
    assert meta_losses(0.8, 0.8, share=0.3, loss=loss).compared().at_chance


def test_the_comparison_looks_back_a_window_and_survives_a_checkpoint(tmp_path):
    assert meta_losses(0.9, 0.1, steps=ENOUGH_STEPS - 1).compared() is None
    found = meta_losses(0.5, 0.5, steps=50)
    for step in meta_losses(0.9, 0.1, steps=WINDOW).state_dict()["steps"]:
        found.add(*step.unbind(1))
    assert len(found) == WINDOW and not found.compared().at_chance
    torch.save(found.state_dict(), tmp_path / "state.pt")
    again = MetaLosses(0.5, "mse")
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert again.compared() == found.compared()
    assert torch.equal(torch.get_rng_state(), before)  # the run's random numbers are its own


LONG = [*("--iteration_num", "31", "--max_epoch", "99", "--unroll_steps", "1"),
        *("--batch_size", "2", "--logging_steps", "31")]  # fmt: skip


def test_a_short_run_does_not_call_its_weights_learned(dataset, tmp_path, capsys):
    flags = ["--unroll_steps", "1", "--iteration_num"]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="std")
        assert program.main(command(dataset, tmp_path / "run", *flags, "1")) == 0
    said = capsys.readouterr().out
    assert "weights after 1 upper step are not learned yet" in said
    assert "signal/noise: not before 30 upper steps" in said
    for domain in DOMAINS:
        assert re.search(rf"^{domain} .* [01]\.\d+ +[01]\.\d+ +-$", said, re.MULTILINE)
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert line["signal_to_noise"] == dict.fromkeys(DOMAINS)
    assert line["spread_to_noise"] is None and line["upper_steps_needed"] is None
    assert "ranking the domains" not in said
    assert line["meta_loss_at_chance"] is None and line["upper_steps"] == 1


def test_a_run_whose_model_cannot_judge_says_so_and_counts_lost_steps(dataset, tmp_path, capsys):
    """Random labels of random pictures, one clipped record a step: nothing is learned."""
    flags = [*LONG, "--batch_size", "1", "--max_grad_norm", "1e-3"]
    assert program.main(command(dataset, tmp_path / "run", *flags)) == 0
    said, err = capsys.readouterr()
    assert "the meta loss is at chance: these weights mean nothing" in said
    assert "signal/noise: of the last 31 hypergradients" in said and "not learned yet" not in said
    assert "ranking the domains cannot be told from noise, by the last 31 hypergradients" in said
    assert "31 of 31 upper steps taught nothing: clipping leaves only the direction" in said
    assert err.count("step 1: an upper step taught nothing") == 1
    assert "with one record a step: where it clips" in err
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert line["meta_loss_at_chance"] is True and line["upper_steps_lost"] == 31
    assert line["meta_loss_of_one_score"] == pytest.approx(0.25, abs=0.01)
    assert all(value == 0 for value in line["signal_to_noise"].values())


def test_what_was_lost_and_seen_survives_an_interruption(dataset, tmp_path, capsys):
    flags = [*LONG, "--batch_size", "1", "--max_grad_norm", "1e-3", "--logging_steps", "1"]
    assert program.main(command(dataset, tmp_path / "whole", *flags)) == 0
    whole = capsys.readouterr().out
    first = command(dataset, tmp_path / "run", *flags, "--iteration_num", "20")
    assert program.main(first) == 0
    assert "weights after 20 upper steps are not learned yet" in capsys.readouterr().out
    assert program.main(command(dataset, tmp_path / "run", *flags, "--resume")) == 0
    resumed = capsys.readouterr().out
    _, end = resumed.split("31 of 31 lower steps done")
    assert end.split("\n", 1)[1] == whole.split("31 of 31 lower steps done")[1].split("\n", 1)[1]


def parsed(dataset, tmp_path, *flags):
    arguments = parse_arguments(command(dataset, tmp_path / "run", *flags))
    return arguments, load_data(arguments, progress=False)


@pytest.mark.parametrize(
    "flags, warned",
    [
        ([], True),
        (["--batch_size", "2"], False),
        (["--gradient_accumulation", "2"], False),
        (["--max_grad_norm", "0"], False),
        (["--batch_by", "cot"], True),
        (["--batch_by", "cot", "--reweighting", "instance_table"], False),
        (["--reweighting", "instance_table"], True),
        (["--reweighting", "instance_net"], True),
        (["--reweighting", "instance_net", "--no_detach_features"], False),
        (["--hypergradient", "darts"], False),
        (["--hypergradient_batches", "all"], False),
        (["--hypergradient_batches", "all", "--unroll_steps", "1"], True),
        (["--baseline"], False),
    ],
)
def test_clipping_single_records_is_warned_of(dataset, tmp_path, flags, warned):
    base = ["--batch_size", "1", "--max_grad_norm", "1", "--meta_lr", "1"]
    found = advice(*parsed(dataset, tmp_path, *base, *flags))
    assert sum(text.startswith("--max_grad_norm 1 with one") for text in found) == warned


def test_the_reach_of_a_weight_follows_rate_steps_and_schedule(dataset, tmp_path):
    def reach(*flags: str) -> float:
        return weight_reach(*parsed(dataset, tmp_path, "--max_epoch", "999", *flags))[1]

    flags = ["--iteration_num", "160", "--unroll_steps", "2", "--meta_lr", "0.01"]
    # softplus(0.8) over the mean with two other domains at softplus(0)
    raised = nn.functional.softplus(torch.tensor([0.8, 0, 0]))
    assert reach(*flags) == pytest.approx(float(raised[0] / raised.mean()))
    assert reach(*flags, "--unroll_steps", "4") < reach(*flags)
    halved = reach(*flags, "--meta_scheduler_step_size", "1", "--meta_scheduler_gamma", "0.5")
    assert halved == pytest.approx(reach(*flags, "--meta_lr", "0.00025"), rel=1e-4)
    assert reach(*flags, "--meta_scheduler_type", "cosine_with_warmup") < reach(*flags)
    table = [*flags, "--reweighting", "instance_table", "--batch_size", "1"]
    records = len(json.loads((dataset / "train.json").read_text()))
    assert reach(*table) == pytest.approx(1 + 0.8 / records)
    assert reach(*table, "--batch_size", "3") == pytest.approx(1 + 2.4 / records)
    assert reach(*table, "--meta_lr", "9") == 3  # the upper bound
    assert 1 < reach(*flags, "--reweighting", "instance_net") < 3


def test_the_domains_adam_moves_reach_what_the_plan_says(dataset, tmp_path):
    """Gradients that always agree: the bound is what AdamW does."""
    from reweighting.bilevel.weighting import DomainTable, make_meta_optimizer

    table = DomainTable(DOMAINS)
    optimizer = make_meta_optimizer(table, 0.01, 0.0)
    for _ in range(80):
        table.raw_weights.grad = torch.tensor([-1e-4, 0.0, 0.0])
        optimizer.step()
    assert float(table.weights()[0].detach()) == pytest.approx(table.reach(0.8), rel=1e-3)


def test_the_plan_says_how_far_weights_move_and_compares_base_rates(dataset, tmp_path, capsys):
    assert program.main(command(dataset, tmp_path / "run", "--dry_run")) == 0
    said, err = capsys.readouterr()
    assert "reach of a weight          from 1 to about 1.01 at --meta_lr 0.01" in said
    assert "--meta_lr 0.01 is too small for so few upper steps (3)" in err
    records = json.loads((dataset / "train.json").read_text())
    said = {}
    for accuracy in (0.5, 0.875):
        for record in records:
            record["accuracy"] = accuracy
        (tmp_path / "same.json").write_text(json.dumps(records))
        flags = ["--train_json_file", str(tmp_path / "same.json"), "--meta_lr", "1", "--dry_run"]
        assert program.main(command(dataset, tmp_path / "run", *flags)) == 0
        said[accuracy], err = capsys.readouterr()
        assert "too small" not in err
    assert "mean train accuracy 0.88, right meta chains 0.50" in said[0.875]
    assert "base rates" not in said[0.5]


def test_the_progress_line_fits_80_columns_and_an_interrupted_run_names_its_command(
    dataset, tmp_path
):
    run = tmp_path / "a run"
    flags = ["--iteration_num", "9000", "--max_epoch", "9999", "--save_every_iterations", "2"]
    process = subprocess.Popen(
        [sys.executable, "main.py", *command(dataset, run, *flags)],
        cwd=REPOSITORY, env={**os.environ, "COLUMNS": "80"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    while not finding.exists(run):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    last = out.rstrip().splitlines()[-1]
    assert last.startswith("to go on: python main.py --train_json_file")
    assert f"'{run}'" in last and last.endswith(" --resume")
    lines = [line for line in re.split(r"[\r\n]", err) if "/9000 [" in line]
    assert all(len(line.rstrip()) < 80 and line.rstrip().endswith("]") for line in lines)
    assert any(re.search(r"loss \S+, meta \d\.\d+, w \S+\]", line) for line in lines)
    assert "nan" not in err


def test_smoothed_losses_are_centred_and_no_outlier_rules_an_end():
    assert smoothed([3.0]) == [3.0] and smoothed([2.0] * 7) == pytest.approx([2.0] * 7)
    line = [float(step) for step in range(101)]
    assert smoothed(line)[50] == pytest.approx(50)  # a running mean would lag by nine steps
    outlier = [9.0] + [1.0] * 100
    assert smoothed(outlier)[0] == pytest.approx(1 + 8 * 0.1, abs=0.01)
    assert smoothed(outlier)[::-1] == pytest.approx(smoothed(outlier[::-1]))


def test_names_stay_by_their_lines_and_apart():
    assert spread([1.0, 2.0, 3.0], 0.5) == [1.0, 2.0, 3.0]
    assert spread([1.0, 1.0], 0.5) == pytest.approx([0.75, 1.25])
    values = sorted([0.1, 0.1, 0.11, 0.9, 0.95, 1.0, 1.02, 2.5])
    places = spread(values, 0.1)
    assert all(b - a >= 0.1 - 1e-9 for a, b in itertools.pairwise(places))
    assert max(abs(a - b) for a, b in zip(values, places, strict=True)) <= 0.15 + 1e-9
    assert places[-1] == 2.5


def test_every_colour_of_a_line_can_be_read_on_white():
    def luminance(colour: str) -> float:
        shares = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
        linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    assert len(set(PALETTE)) == 10
    assert all(1.05 / (luminance(colour) + 0.05) >= 4.5 for colour in PALETTE)


# ---- figures of what a run wrote


def write_metrics(run, *lines: str, domains: tuple[str, ...] = ("a", "b")):
    """A run's metrics: three good lines, then ``lines`` as they are."""
    run.mkdir(exist_ok=True)
    weights = {domain: 1.0 for domain in domains}
    (run / "domain_weights.json").write_text(json.dumps(weights))
    good = [
        json.dumps({"iteration": k, "loss": 0.1, "meta_loss": 0.2, "weights": weights})
        for k in range(1, 4)
    ]
    (run / "metrics.jsonl").write_text("".join(f"{line}\n" for line in [*good, *lines]))
    return run


def draw(run, output) -> int:
    return figures.main(["--weights_path", str(run), "--output_dir", str(output)])


def test_names_that_hold_a_dollar_sign_are_drawn(tmp_path, capsys):
    run = write_metrics(tmp_path / "run", domains=("costs $", "$a_b^$", r"\$"))
    assert draw(run, tmp_path / "figures") == 0
    for name in capsys.readouterr().out.split():
        with Image.open(name) as picture:
            assert len(picture.convert("RGB").getcolors(2**24)) > 10


@pytest.mark.parametrize("output", ["file", "file/below", "/proc/figures"])
def test_figures_that_cannot_be_written_cost_one_line(tmp_path, capsys, output):
    (tmp_path / "file").write_text("kept")
    assert draw(write_metrics(tmp_path / "run"), tmp_path / output) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path / output}") and said.count("\n") == 1
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize(
    "line",
    [
        "[1, 2]",
        "7",
        '{"iteration": 9}',
        '{"iteration": 9, "loss": "much"}',
        '{"iteration": true, "loss": 0.1}',
        '{"iteration": 9, "loss": 0.1, "meta_loss": [1]}',
        '{"iteration": 9, "loss": 0.1, "weights": {"a": NaN, "b": 1}}',
        '{"iteration": 9, "loss": 0.1, "weights": [1, 2]}',
    ],
)
def test_damaged_metrics_are_named_and_left_out(tmp_path, capsys, line):
    run = write_metrics(tmp_path / "run")
    assert draw(run, tmp_path / "whole") == 0
    assert capsys.readouterr().err == ""
    assert draw(write_metrics(run, line), tmp_path / "damaged") == 0
    said = capsys.readouterr().err
    assert "metrics.jsonl: 1 of 4 lines are left out" in said and said.count("\n") == 1
    for picture in (tmp_path / "whole").iterdir():
        assert (tmp_path / "damaged" / picture.name).read_bytes() == picture.read_bytes()


@pytest.mark.parametrize("weights", ["[1]", '{"a": NaN}', '{"a": "1"}', "{}", '{"a": -1}', "{"])
def test_damaged_domain_weights_are_named(tmp_path, capsys, weights):
    run = write_metrics(tmp_path / "run")
    (run / "domain_weights.json").write_text(weights)
    assert draw(run, tmp_path / "figures") == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {run / 'domain_weights.json'}") and said.count("\n") == 1
