"""``reweighting.training.signal`` on the tiny model: the numbers, the command, its refusals."""

from __future__ import annotations

import copy
import json

import pytest
import torch

import main as program
from benchmarks.hypergradient import build, hypergradient_and_oracle
from reweighting.bilevel.batches import CollateTrain, EncodedDataset, collate_meta
from reweighting.bilevel.weighting import DomainTable
from reweighting.records.reader import RecordReader, load_meta, load_train
from reweighting.training.signal import __main__ as signal
from reweighting.training.signal.derivative import measure, meta_sample
from reweighting.training.signal.sampling import MetaQuestions
from tests.bilevel.test_ranking import with_rivals
from tests.conftest import DOMAINS, command


@pytest.mark.parametrize("max_grad_norm", [0.0, 1e-3], ids=["free", "clipped"])
@pytest.mark.parametrize("loss", ["mse", "rank"])
def test_it_is_the_hypergradient_of_the_same_records(
    dataset, tmp_path, reward_model, loss, max_grad_norm
):
    """Against float64 autograd through the AdamW step, and against the hypergradient of a run."""
    options = {"image_root": str(dataset)}
    train = load_train(RecordReader(str(dataset / "train.json"), **options))
    meta, _ = load_meta(RecordReader(str(with_rivals(dataset, tmp_path / "meta.json")), **options))
    encoder = reward_model.encoder
    train_set = EncodedDataset([[sample] for sample in train], encoder)
    batches = [
        CollateTrain(DOMAINS)([train_set[(5 * k + i * 9) % len(train)] for i in range(4)])
        for k in range(3)
    ]
    rivals = [[meta[k], meta[24 + 3 + k - 1]] for k in (4, 5)]
    units = rivals if loss == "rank" else [[chain] for pair in rivals for chain in pair]
    data = EncodedDataset(units, encoder)
    chains = collate_meta([data[k] for k in range(len(units))])
    engine = build(copy.deepcopy(reward_model), DOMAINS, [], [], lr=1e-4, meta_lr=0.0,
                   meta_loss=loss, max_grad_norm=max_grad_norm)  # fmt: skip
    lower, kept = engine.lower, []
    taken = lower.optimizer_step
    lower.optimizer_step = lambda: (taken(), kept.append(lower.last_step.again()))
    ours, exact = hypergradient_and_oracle(engine, batches, [chains] * 3, 3)
    lower.last_step = kept[-1]
    questions = MetaQuestions(loss, [units], 4.0, "")
    found = measure(engine, [batches[-1]], questions, encoder, size=2)[:, 0]  # in several passes
    table = DomainTable(DOMAINS)
    (-(table(batches[-1]) * found.float()).sum() / 4).backward()
    again = table.raw_weights.grad.double()
    for other in (ours, exact):
        assert torch.cosine_similarity(again, other, dim=0) > 0.9999
        assert (again - other).norm() / other.norm() < 2e-3


def test_batches_of_a_group_hold_every_unit_once(dataset, reward_model):
    meta, _ = load_meta(RecordReader(str(dataset / "meta.json"), image_root=str(dataset)))
    group = [[sample] for sample in meta[:7]]
    batches = list(meta_sample(group, reward_model.encoder, 3))
    assert [batch.records.tolist() for batch in batches] == [[1, 2, 3], [4, 5, 6], [7]]


@pytest.fixture(scope="module")
def rivals(dataset, tmp_path_factory):
    return with_rivals(dataset, tmp_path_factory.mktemp("rivals") / "meta.json")


def flags(dataset, rivals, run, *more: str) -> list[str]:
    small = ["--chains_per_domain", "6", "--meta_groups", "4", "--meta_batch_size", "4"]
    return command(dataset, run, "--meta_json_file", str(rivals), *small, *more)


def result(folder) -> dict:
    found = json.loads((folder / "signal.json").read_text())
    assert found.pop("seconds") > 0
    return found


def test_a_base_is_measured_at_its_moments_and_nothing_else_changes(
    dataset, rivals, tmp_path, capsys
):
    run = tmp_path / "run"
    assert signal.main(flags(dataset, rivals, run, "--at", "2", "3")) == 0
    said = capsys.readouterr().out
    assert "train sample: 6 records of 3 domains, drawn at random (--seed 1)" in said
    assert "meta sample, published loss (mse): 48 of 48 chains in 4 groups" in said
    assert "22 questions with 46 chains in 4 groups; 2 of 24 questions have no pair" in said
    assert "after 2 lower steps" in said and "after 3 lower steps" in said
    for domain in DOMAINS:
        assert said.count(f"\n{domain} ") == 2
    found = result(run / "signal")
    assert [moment["lower_steps"] for moment in found["moments"]] == [2, 3]
    for moment in found["moments"]:
        for loss in ("published", "ranking"):
            pulls = [domain[loss]["pull"] for domain in moment["domains"]]
            assert sum(pulls) == pytest.approx(0, abs=1e-5) and max(map(abs, pulls)) > 0.5
            assert all(domain[loss]["standard_error"] > 0 for domain in moment["domains"])
            assert -1 <= moment["losses"][loss]["r2_of_mean_label"] <= 1
    assert (run / "signal" / "signal.png").stat().st_size > 10_000
    # The same again, with other passes: no number depends on them, but for rounding.
    again = flags(dataset, rivals, run, "--at", "3", "--at_once", "5", "--output_dir")
    assert signal.main([*again, str(tmp_path / "again")]) == 0
    first, second = found["moments"][1], result(tmp_path / "again")["moments"][0]
    for a, b in zip(first["domains"], second["domains"], strict=True):
        assert a["ranking"]["pull"] == pytest.approx(b["ranking"]["pull"], rel=1e-2, abs=1e-3)
    assert program.main(flags_of_main(flags(dataset, rivals, run))) == 0  # the run can start there


def flags_of_main(flags: list[str]) -> list[str]:
    own = ("--chains_per_domain", "--meta_groups")
    pairs = [flags[k : k + 2] for k in range(0, len(flags), 2)]
    return [word for pair in pairs if pair[0] not in own for word in pair]


@pytest.mark.parametrize(
    "more", [[], ["--meta_loss", "rank", "--reweighting", "instance_net"]], ids=["domains", "net"]
)
def test_a_run_is_measured_at_its_checkpoint(dataset, rivals, tmp_path, capsys, more):
    run = tmp_path / "run"
    whole = flags(dataset, rivals, run, *more)
    assert program.main(flags_of_main(whole)) == 0
    before = sorted(path.stat().st_mtime_ns for path in (run / "checkpoints").rglob("*"))
    results = []
    for name in ("one", "two"):
        output = ["--resume", "--output_dir", str(tmp_path / name)]
        assert signal.main([*whole, *output]) == 0
        results.append(result(tmp_path / name))
    assert results[0] == results[1]
    assert results[0]["moments"][0]["lower_steps"] == 7
    assert "after 7 lower steps" in capsys.readouterr().out
    assert sorted(p.stat().st_mtime_ns for p in (run / "checkpoints").rglob("*")) == before


@pytest.mark.parametrize(
    "more, said",
    [
        (["--baseline"], "learn no weights: give the flags of the run that is to learn them"),
        (["--meta_target", "prefix"], "--meta_target prefix is not measured"),
        (["--resume", "--at", "3"], "--at is for a base model"),
        (["--resume"], "there is nothing to resume"),
        (["--meta_groups", "40"], "48 chains are too few for --meta_groups 40"),
        (["--train_subset", "random", "--subset_size", "8"], "2 domains: a ranking needs 3"),
        (["--train_subset", "random", "--subset_size", "12"], "has fewer than 4 chains or records"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(
    dataset, rivals, tmp_path, capsys, more, said
):
    assert signal.main(flags(dataset, rivals, tmp_path / "run", *more)) == 2
    (line,) = (x for x in capsys.readouterr().err.splitlines() if x.startswith("error: "))
    assert said in line


def test_a_plan_names_it_and_its_own_dry_run_says_how_it_samples(dataset, rivals, tmp_path, capsys):
    plan = [*flags_of_main(flags(dataset, rivals, tmp_path / "run")), "--dry_run"]
    assert program.main(plan) == 0
    assert (
        "before the run             python -m reweighting.training.signal"
        in capsys.readouterr().out
    )
    limited = flags(dataset, rivals, tmp_path / "run", "--dry_run", "--meta_chains", "20")
    assert signal.main(limited) == 0
    said = capsys.readouterr().out
    assert "20 of 48 chains in 4 groups" in said and not (tmp_path / "run").exists()


def test_without_pairs_only_the_published_loss_is_measured(dataset, tmp_path, capsys):
    plain = command(dataset, tmp_path / "run", "--chains_per_domain", "4", "--meta_groups", "2")
    assert signal.main([*plain, "--at", "2"]) == 0
    assert "the ranking loss is not measured: too few questions have a pair" in (
        capsys.readouterr().out
    )
    (moment,) = result(tmp_path / "run" / "signal")["moments"]
    assert list(moment["losses"]) == ["published"]
