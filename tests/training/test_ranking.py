"""Runs with ``--meta_loss rank``."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

import main as program
from tests.bilevel.test_ranking import with_rivals
from tests.conftest import command
from tests.training.test_diagnostics import LONG
from tests.training.test_training import assert_same_run, metrics_of, train, weights_of


@pytest.fixture(scope="module")
def rivals(dataset, tmp_path_factory) -> Path:
    return with_rivals(dataset, tmp_path_factory.mktemp("rivals") / "meta.json")


def ranking(meta: Path, *flags: str) -> list[str]:
    flags = ("--meta_batch_size", "5", *flags)
    return ["--meta_loss", "rank", "--meta_json_file", str(meta), *flags]


@pytest.mark.parametrize(
    "flags",
    [[], ["--reweighting", "instance_net", "--hypergradient_batches", "all"]],
    ids=["domains", "net-all-batches"],
)
def test_a_resumed_run_equals_the_uninterrupted_one(dataset, rivals, tmp_path, flags):
    flags = ranking(rivals, *flags)
    whole = train(dataset, tmp_path / "whole", *flags, "--iteration_num", "8")
    run = train(dataset, tmp_path / "run", *flags, "--iteration_num", "3", "--num_workers", "1")
    assert_same_run(train(dataset, run, *flags, "--resume", "--iteration_num", "8"), whole)
    assert metrics_of(run)[-1]["meta_loss"] > 0 and metrics_of(run)[-1]["hypergradient_norm"] > 0


def test_it_learns_other_weights_than_the_published_loss(dataset, rivals, tmp_path):
    ours = weights_of(train(dataset, tmp_path / "rank", *ranking(rivals)))
    theirs = weights_of(train(dataset, tmp_path / "mse", *ranking(rivals, "--meta_loss", "mse")))
    assert not ours["raw_weights"].equal(theirs["raw_weights"])


def test_plan_and_start_say_which_questions_are_left_out(dataset, rivals, tmp_path, capsys):
    flags = command(dataset, tmp_path / "run", *ranking(rivals))
    assert program.main([*flags, "--dry_run"]) == 0
    plan, err = capsys.readouterr()
    left_out = (
        f"{rivals}: --meta_loss rank leaves out 1 of 24 questions that have right chains only, "
        "and 1 that have wrong ones only"
    )
    assert left_out in err
    assert "meta chains                46 (23 right)" in plan
    assert "meta questions             22 with right and wrong chains" in plan
    assert program.main(flags) == 0
    assert left_out in capsys.readouterr().err


def test_what_cannot_be_ranked_is_refused(dataset, rivals, tmp_path, capsys):
    run = tmp_path / "run"
    assert program.main(command(dataset, run, "--meta_loss", "rank")) == 2
    said = capsys.readouterr().err
    assert f"{dataset / 'meta.json'}: no question has both a right and a wrong chain" in said
    for flags, reason in (
        (["--meta_target", "prefix"], "it cannot go with --meta_target prefix"),
        (["--meta_batch_size", "1"], "it needs a --meta_batch_size of 2 or more"),
    ):
        with pytest.raises(SystemExit):
            program.main(command(dataset, run, *ranking(rivals, *flags)))
        assert reason in capsys.readouterr().err
    assert not run.exists()


def test_one_score_for_all_has_log_2_a_question(dataset, rivals, tmp_path, capsys):
    flags = ranking(rivals, *LONG, "--lr", "1e-9")
    assert program.main(command(dataset, tmp_path / "run", *flags)) == 0
    said = capsys.readouterr().out
    assert "the meta loss is at chance" in said
    assert re.search(r"meta questions it is 0\.6\d+, and one score for all has 0\.6931", said)
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert line["meta_loss_of_one_score"] == pytest.approx(math.log(2))
