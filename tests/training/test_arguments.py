"""The command line of training: every flag is described, and every flag is used."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
import torch

from reweighting.system.device import unusable
from reweighting.training.arguments import parse_arguments, resolve
from reweighting.training.flags import build_parser
from reweighting.training.flags_page import page
from tests.conftest import REPOSITORY, command

PARSERS = {"records/flags.py", "training/flags.py", "training/flags_page.py"}


def test_the_page_about_flags_is_what_the_parser_says():
    assert (REPOSITORY / "docs" / "flags.md").read_text(encoding="utf-8") == page()


def test_the_page_names_every_flag_once_with_its_meaning():
    rows = [line for line in page().splitlines() if line.startswith("| `--")]
    for action in build_parser()._actions[1:]:
        names = " ".join(f"`{flag}`" for flag in action.option_strings)
        (row,) = (line for line in rows if line.startswith(f"| {names} |"))
        assert len(row.replace("\\|", "").split("|")) == 5
        assert all(f"`{choice}`" in row for choice in action.choices or ())
    assert len(rows) == len(build_parser()._actions) - 1


def arguments_read(file: Path) -> set[str]:
    """The names of what ``file`` reads from arguments, as in ``self.arguments.lr`` or ``a.lr``."""
    return {
        node.attr
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and ast.unparse(node.value).split(".")[-1] in ("a", "arguments")
    }


def test_no_flag_is_dead():
    package = REPOSITORY / "reweighting"
    files = {*package.rglob("*.py"), REPOSITORY / "main.py"} - {package / name for name in PARSERS}
    used = set().union(*map(arguments_read, files))
    assert {action.dest for action in build_parser()._actions[1:]} - used == set()


def test_what_follows_from_flags_is_resolved_in_a_copy(dataset, tmp_path):
    flags = build_parser().parse_args(command(dataset, tmp_path, "--device", "cuda", "--lr", "3"))
    before = dict(vars(flags))
    resolved = resolve(flags)
    assert vars(flags) == before
    added = {"by_instance": False, "learn_weights": True, "device": "cuda:0", "processes": 1}
    added |= {"cold_start_lr": 3, "cold_start_weight_decay": flags.weight_decay}
    added["subset_size"] = 2000
    assert vars(resolved) == before | added


@pytest.mark.parametrize(
    "flags, learned, by_instance",
    [
        ([], True, False),
        (["--baseline"], False, False),
        (["--domain_weights", "given.json"], False, False),
        (["--reweighting", "instance_net"], True, True),
        (["--reweighting", "instance_table", "--domain_weights", "given.json"], True, True),
    ],
)
def test_weights_are_learned_unless_they_are_given(dataset, tmp_path, flags, learned, by_instance):
    arguments = parse_arguments(command(dataset, tmp_path, *flags))
    assert (arguments.learn_weights, arguments.by_instance) == (learned, by_instance)
    json.dumps(vars(arguments))  # what a checkpoint keeps


@pytest.mark.parametrize(
    "flags, device",
    [
        (["--device", "cuda"], "cuda:0"),
        (["--device", "cuda", "--local_rank", "2"], "cuda:2"),
        (["--device", "cuda:03"], "cuda:3"),
        (["--device", "cpu"], "cpu"),
    ],
)
def test_a_device_has_its_number(dataset, tmp_path, flags, device):
    assert parse_arguments(command(dataset, tmp_path, "--dry_run", *flags)).device == device


@pytest.mark.parametrize(
    "found, device, reason",
    [
        (0, "cpu", None),
        (0, "cuda", "no CUDA device is there; try --device cpu"),
        (0, "cuda:0", "CUDA device 0 is not there (0 found); --device cpu runs on the processor"),
        (2, "cuda", None),
        (2, "cuda:1", None),
        (2, "cuda:2", "CUDA device 2 is not there (2 found); --device cpu runs on the processor"),
        (2, "cuda:x", "CUDA device x is not there (2 found); --device cpu runs on the processor"),
    ],
)
def test_a_missing_device_is_named(monkeypatch, found, device, reason):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    assert unusable(device) == reason
