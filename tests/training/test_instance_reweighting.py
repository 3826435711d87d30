"""main.py with instance weights, cold start, schedules of both levels: an effect for every flag."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from pyarrow import parquet

import main as program
from reweighting import figures
from reweighting.training.statistics import divergence, entropy
from tests.conftest import DOMAINS, command
from tests.training.test_training import assert_same_run, metrics_of, train, weights_of

TABLE = ["--reweighting", "instance_table", "--unroll_steps", "1", "--meta_lr", "0.2"]
NET = ["--reweighting", "instance_net", "--unroll_steps", "1", "--meta_lr", "0.05"]


def learned(run) -> dict[int, float]:
    """{record: weight} of the records seen."""
    table = parquet.read_table(run / "instance_weights.parquet").to_pydict()
    assert list(table) == ["id", "record", "domain", "weight", "visits"]
    assert set(table["domain"]) <= set(DOMAINS)
    for weight, visits in zip(table["weight"], table["visits"], strict=True):
        assert (weight is None) == (visits == 0)
    return {
        record: weight
        for record, weight in zip(table["record"], table["weight"], strict=True)
        if weight is not None
    }


@pytest.fixture(scope="module")
def table_run(dataset, tmp_path_factory):
    return train(dataset, tmp_path_factory.mktemp("table") / "run", *TABLE, "--lr", "1e-3")


@pytest.fixture(scope="module")
def net_run(dataset, tmp_path_factory):
    return train(dataset, tmp_path_factory.mktemp("net") / "run", *NET, "--lr", "1e-3")


def test_a_table_learns_a_weight_for_every_record_seen(table_run):
    state = torch.load(table_run / "instance_weights.pt", weights_only=True)["module"]
    moved = (state["raw_weights"][:, 0] != 1).sum()
    weights = learned(table_run)
    assert 0 < moved <= len(weights)
    assert not (table_run / "domain_weights.json").exists()
    last = metrics_of(table_run)[-1]
    assert set(last["weights"]) <= set(DOMAINS) and 0 < last["weight_entropy"] <= 1
    assert last["hypergradient_norm"] > 0


def test_a_net_learns_weights_within_its_bounds(net_run):
    weights = learned(net_run).values()
    assert all(0 < weight < 3 for weight in weights)
    assert len(set(weights)) > 2


@pytest.mark.parametrize(
    "flags",
    [
        TABLE,
        [*NET, "--unroll_steps", "3", "--hypergradient_batches", "all"],
        [*TABLE, "--cold_start_iterations", "3", "--scheduler_type", "cosine_with_warmup"],
    ],
    ids=["table", "net-all-batches", "cold-start-cosine"],
)
def test_an_interrupted_run_resumes_where_it_was(dataset, tmp_path, flags, monkeypatch):
    flags = [*flags, "--lr", "1e-3"]
    whole = train(dataset, tmp_path / "whole", *flags)
    from reweighting.training.engine import ReweightingEngine

    for stop in (2, 4):  # in the cold start, and between two upper steps
        run = tmp_path / f"run{stop}"
        after_step = ReweightingEngine._after_step

        def interrupt(self, bar, seconds, stop=stop, after_step=after_step):
            after_step(self, bar, seconds)
            if self.progress.iteration == stop:
                self._interrupted = 2

        with monkeypatch.context() as patch:
            patch.setattr(ReweightingEngine, "_after_step", interrupt)
            assert program.main(command(dataset, run, *flags)) == 130
        assert_same_run(train(dataset, run, *flags, "--resume"), whole)
        assert learned(run) == learned(whole)


def changed(dataset, tmp_path, base, *flags) -> bool:
    """Whether ``flags`` change what a run learns."""
    one = train(dataset, tmp_path / "one", *base, "--lr", "1e-3")
    other = train(dataset, tmp_path / "other", *base, "--lr", "1e-3", *flags)
    a, b = weights_of(one), weights_of(other)
    return learned(one) != learned(other) or any(not torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize(
    "base, flags",
    [
        (TABLE, ["--weight_bounds", "0.9", "1.1"]),
        ([*TABLE, "--meta_lr", "2"], ["--weight_activation", "leaky_relu"]),
        (NET, ["--weight_bounds", "0", "1"]),
        (NET, ["--net_features", "labels"]),
        (NET, ["--net_features", "hidden"]),
        (NET, ["--net_width", "3"]),
        (NET, ["--net_layers", "2"]),
        (NET, ["--no_detach_features"]),
        (TABLE, ["--meta_max_grad_norm", "1e-12", "--meta_weight_decay", "0.5"]),
        (TABLE, ["--meta_scheduler_type", "cosine_with_warmup"]),
        (TABLE, ["--meta_scheduler_step_size", "1", "--meta_scheduler_gamma", "0.1"]),
        (TABLE, ["--scheduler_type", "cosine_with_warmup"]),
        (TABLE, ["--cold_start_iterations", "2"]),
    ],
    ids=lambda value: value[0].strip("-") if value and value[0] not in ("--reweighting",) else "",
)
def test_every_flag_changes_what_is_learned(dataset, tmp_path, base, flags):
    assert changed(dataset, tmp_path, base, *flags)


def test_flags_of_the_cold_start_and_the_warm_up(dataset, tmp_path):
    cold = [*TABLE, "--cold_start_iterations", "4", "--iteration_num", "2"]
    assert changed(dataset, tmp_path / "lr", cold, "--cold_start_lr", "1e-4")
    assert changed(dataset, tmp_path / "decay", cold, "--cold_start_weight_decay", "0.5")
    cosine = [*TABLE, "--scheduler_type", "cosine_with_warmup"]
    assert changed(dataset, tmp_path / "share", cosine, "--warmup_share", "0.9")


def test_the_cold_start_is_the_baseline_and_comes_on_top(dataset, tmp_path):
    flags = ["--cold_start_iterations", "5", "--iteration_num", "1", "--logging_steps", "5"]
    run = train(dataset, tmp_path / "run", *TABLE, *flags, "--lr", "1e-3")
    plain = train(
        dataset, tmp_path / "plain", "--baseline", "--iteration_num", "5", "--lr", "1e-3",
        "--logging_steps", "5", "--unroll_steps", "1",
    )  # fmt: skip
    ours, theirs = metrics_of(run), metrics_of(plain)
    assert ours[0]["loss"] == theirs[0]["loss"]
    assert ours[0]["weights"] == {} and [line["iteration"] for line in ours] == [5, 6]


def test_a_cosine_schedule_cannot_be_resumed_with_another_length(dataset, tmp_path, capsys):
    flags = [*TABLE, "--scheduler_type", "cosine_with_warmup"]
    run = train(dataset, tmp_path / "run", *flags)
    assert program.main(command(dataset, run, *flags, "--iteration_num", "9", "--resume")) == 2
    assert "iteration_num" in capsys.readouterr().err


def test_instance_weights_multiply_domain_weights(dataset, tmp_path):
    file = tmp_path / "domains.json"
    file.write_text(json.dumps(dict(zip(DOMAINS, (2, 1, 0), strict=True))))
    run = train(
        dataset, tmp_path / "run", *TABLE, "--domain_weights", str(file), "--meta_lr", "1e-9"
    )
    table = parquet.read_table(run / "instance_weights.parquet").to_pydict()
    seen = {
        (domain, round(weight, 4))
        for domain, weight in zip(table["domain"], table["weight"], strict=True)
        if weight is not None
    }
    assert seen <= set(zip(DOMAINS, (2.0, 1.0, 0.0), strict=True)) and len(seen) > 1


def test_one_domain_is_enough_for_instance_weights(dataset, tmp_path, capsys):
    records = json.loads((dataset / "train.json").read_text())
    for record in records:
        record["dataset"] = "one"
    (dataset / "one.json").write_text(json.dumps(records))
    flags = ["--train_json_file", str(dataset / "one.json")]
    assert program.main(command(dataset, tmp_path / "domain", *flags)) == 2
    assert "--reweighting instance_table" in capsys.readouterr().err
    assert program.main(command(dataset, tmp_path / "run", *TABLE, *flags)) == 0


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--weight_bounds", "3", "0"], "--weight_bounds 3 0"),
        (["--no_detach_features"], "is for --reweighting instance_net"),
        ([*NET, "--no_detach_features", "--hypergradient", "darts"], "needs --hypergradient"),
        (["--warmup_share", "2"], "at most 1"),
        (["--reweighting", "none", "--domain_weights", "x.json"], "cannot go with"),
    ],
)
def test_flags_that_make_no_sense_are_refused(dataset, tmp_path, flags, said, capsys):
    with pytest.raises(SystemExit):
        program.main(command(dataset, tmp_path / "run", *flags))
    assert said in capsys.readouterr().err


def test_divergence_is_noticed():
    spread = torch.tensor([0.5, 1.0, 1.5, 2.0])
    assert divergence(spread, (0.0, 3.0)) is None and entropy(torch.ones(7)) == pytest.approx(1)
    assert "bound of 3" in divergence(torch.full((9,), 2.999), (0.0, 3.0))
    assert "bound of 0" in divergence(torch.zeros(9), (0.0, 3.0))
    one = torch.zeros(100)
    one[3] = 2
    assert "collapsed" in divergence(one, (0.0, 3.0)) and entropy(one) == 0
    assert divergence(torch.full((9,), -1.0), (float("-inf"), float("inf"))) is not None


def test_a_diverging_run_says_so(dataset, tmp_path, capsys):
    flags = [*TABLE, "--meta_lr", "50", "--weight_bounds", "0.999", "1.001"]
    train(dataset, tmp_path / "run", *flags, "--iteration_num", "40", "--max_epoch", "99")
    assert "all weights are at" in capsys.readouterr().err


def test_figures_of_instance_weights(table_run, tmp_path):
    assert figures.main(["--weights_path", str(table_run), "--output_dir", str(tmp_path)]) == 0
    for name in ("instance_weights.png", "contact_sheet.png", "weights_over_time.png"):
        with Image.open(tmp_path / name) as picture:
            assert len(picture.convert("RGB").getcolors(2**24)) > 10
