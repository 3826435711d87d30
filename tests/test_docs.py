"""README and pages: every link, path, flag, record and name in them leads somewhere."""

from __future__ import annotations

import argparse
import ast
import functools
import importlib
import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from PIL import Image

from reweighting.records.dataset import load_data
from reweighting.reward_model import RewardModel
from reweighting.training.arguments import parse_arguments
from tests.conftest import REPOSITORY

README = REPOSITORY / "README.md"
CARDS = (REPOSITORY / "data" / "README.md", REPOSITORY / "weights" / "README.md")
FLAGS = REPOSITORY / "docs" / "flags.md"  # written by a program
WRITTEN = [page for page in sorted(REPOSITORY.glob("docs/*.md")) if page != FLAGS]
PAGES = [README, REPOSITORY / "CONTRIBUTING.md", *WRITTEN, *CARDS]
ROOMS = ("reweighting", "benchmarks", "tests", "docs", "figs", "data", ".github")  # with paths

# Programs whose own parser reads the commands; the flags of other scripts are looked up.
PARSED = (
    "main.py",
    *("reweighting.selection", "reweighting.rollouts", "reweighting.exchange"),
    "reweighting.evaluate",
    *("reweighting.figures", "reweighting.reproduce", "reweighting.training.signal"),
    *("reweighting.export", "reweighting.report"),
)

# Why no test runs a command as it is written in the pages.
NOT_RUN = {
    "python main.py": "takes a GPU and a model from the hub; tests/training run it on a CPU",
    "python -m reweighting.selection": "takes a GPU; tests/selection run it on a CPU",
    "python -m reweighting.export": "needs a trained model; tests/export run it",
    "python -m reweighting.report": "needs a selection and a run; tests/report write the page",
    "python -m reweighting.evaluate": "takes a GPU and a benchmark; tests/evaluate run it on a CPU",
    "python -m reweighting.training.signal": "takes a GPU; tests/training/signal run it on a CPU",
    "python -m reweighting.training.flags_page": "tests/training/test_arguments.py makes the page",
    "python -m reweighting.rollouts": "needs a reasoner; tests/rollouts start a small server",
    "python -m reweighting.reproduce": "takes hours, or a GPU; tests/reproduce run a short study",
    "python -m reweighting.exchange": "needs others' files; tests/selection and exchange do",
    "python -m reweighting.figures": "needs a trained model; tests/training draw its figures",
    "python -m benchmarks.": "takes minutes to hours",
    "python -m tests.fuzz": "takes minutes; tests/test_fuzz.py runs a few rounds",
    "python -m pytest": "is what runs these tests",
    "python data/make_demo.py": "tests/world make the same data",
    "python weights/": "takes from seconds to an hour; tests/world open what it made",
    "make ": "installs packages, or runs all tests, or takes minutes",
    "python -m venv": "installs packages",
    "pip install": "installs packages; tests/test_setup.py builds ours",
    ". .venv/bin/activate": "belongs to an installation",
    "pre-commit ": "needs another package and git hooks",
    "vllm serve": "needs a GPU",
    "torchrun ": "takes GPUs; tests/training start two processes on a CPU",
    "srun ": "takes several machines",
    "export ": "sets a variable of the shell",
}


class Found(Exception):
    """The program has made its parser, which is the argument."""


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(page), re.DOTALL | re.MULTILINE)


def prose(page: Path) -> str:
    """The page without its blocks of code, each paragraph on a line."""
    text = re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"(?<!\n)\n(?!\n)", " ", text)


def commands(page: Path) -> list[list[str]]:
    """Every command of the page's blocks, variables of the shell filled in."""
    found, variables = [], {}
    indented = re.findall(r"^ {4}((?:python|make) .*)", text_of(page), re.MULTILINE)
    for block in [*blocks(page, "bash"), *indented]:
        for line in block.replace("\\\n", " ").splitlines():
            for name, value in variables.items():
                line = line.replace(f"${name}", value)
            words = shlex.split(line, comments=True)
            if words and (match := re.fullmatch(r"(\w+)=(.*)", words[0])):
                variables[match[1]] = match[2]
                continue
            while "&&" in words:
                found.append(words[: words.index("&&")])
                words = words[words.index("&&") + 1 :]
            found.append(words)
    return [words for words in found if words]


def mentioned(page: Path) -> list[list[str]]:
    """Commands of ours in running text, which may leave out what a sentence does not need."""
    return [shlex.split(code) for code in re.findall(r"`((?:python|make) [^`…]+)`", prose(page))]


def program(words: list[str]) -> tuple[str, list[str]]:
    """The script or module that ``python`` runs, and its arguments."""
    return (words[2], words[3:]) if words[1] == "-m" else (words[1], words[2:])


@functools.cache
def parser_of(name: str) -> argparse.ArgumentParser:
    """The parser that the program ``name`` makes; it is started, and stopped when it would read."""

    def stop(parser, *_):
        raise Found(parser)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Found) as found:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        patch.setattr(sys, "argv", [name])
        if name == "main.py":
            runpy.run_path(str(REPOSITORY / name), run_name="__main__")
        else:
            runpy.run_module(name, run_name="__main__")
    return found.value.args[0]


def check_other(name: str, arguments: list[str]) -> None:
    """A script whose parser is not asked: it exists and its source names the flags."""
    path = REPOSITORY / (name if name.endswith(".py") else name.replace(".", "/") + ".py")
    if not path.exists():
        path = path.with_suffix("") / "__main__.py"
    source = path.read_text(encoding="utf-8")
    for flag in re.findall(r"--\w+", " ".join(arguments)):
        assert f'"{flag}"' in source, f"{name} knows no {flag}"


def check_make(words: list[str]) -> None:
    targets = re.findall(r"^([\w-]+):", text_of(REPOSITORY / "Makefile"), re.MULTILINE)
    for word in words:
        assert word in targets or re.fullmatch(r"(PYTHON|LATEST|LOWEST)=\S+", word), word


def test_the_readme_is_short():
    text = text_of(README)
    assert len(text.splitlines()) <= 150 and len(text) <= 12_000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_to_files_and_headings(page):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", text_of(page)):
        if target.startswith(("http:", "https:")):
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)", text_of(path), re.MULTILINE)
            slugs = [re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in headings]
            assert anchor in slugs, f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_files_that_are_named_exist(page):
    for name in re.findall(r"`([\w./-]+)`", prose(page)):
        if name.endswith(".py") and "/" not in name:
            known = [*REPOSITORY.glob(name), *page.parent.glob(name)]
            for room in ("reweighting", "tests", "benchmarks", "data", "weights"):
                known += (REPOSITORY / room).rglob(name)
            assert known, name
        elif name.endswith(".py") or (name.split("/")[0] in ROOMS and "/" in name):
            assert (REPOSITORY / name).exists() or (page.parent / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_functions_that_are_named_exist(page):
    files = [REPOSITORY / "main.py", *REPOSITORY.glob("reweighting/**/*.py")]
    source = "\n".join(map(text_of, files))
    for name in re.findall(r"`(?:[\w.]+\.)?(\w+)\(\)`", text_of(page)):
        assert re.search(rf"^\s*(async def|def|class) {name}\b", source, re.MULTILINE), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_commands_are_read_by_their_programs(page, capsys):
    for words, whole in [(w, True) for w in commands(page)] + [(w, False) for w in mentioned(page)]:
        line = shlex.join(words)
        if words[0] == "make":
            check_make(words[1:])
        if words[0] != "python" or program(words)[0] in ("venv", "pytest", "pip"):
            continue
        name, arguments = program(words)
        if name not in PARSED:
            check_other(name, arguments)
            continue
        try:
            parser_of(name).parse_args(arguments)
        except SystemExit as error:
            said = capsys.readouterr().err
            missing = "required" in said and not whole
            assert missing or (error.code == 0 and "--help" in words), f"{line}: {said}"


def test_commands_that_no_test_runs_are_listed_with_the_reason():
    lines = [" ".join(w) for page in PAGES for w in [*commands(page), *mentioned(page)]]
    for line in lines:
        assert any(line.startswith(start) for start in NOT_RUN), line
    for start in NOT_RUN:
        assert any(line.startswith(start) for line in lines), f"{start} is in no page any more"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_records_are_json(page):
    for block in blocks(page, "json"):
        try:
            json.loads(block)
        except json.JSONDecodeError:  # JSON Lines
            assert all(json.loads(line) for line in block.splitlines())


def test_the_records_of_the_readme_can_be_trained_on(tmp_path):
    [block] = blocks(README, "json")
    train, meta = map(json.loads, block.splitlines())
    (tmp_path / "images").mkdir()
    for record in (train, meta):
        Image.new("RGB", (56, 56)).save(tmp_path / record["image_path"])
    (tmp_path / "train.json").write_text(json.dumps([train, train | {"dataset": "another"}]))
    (tmp_path / "meta.json").write_text(json.dumps([meta, meta | {"true_false": False}]))
    flags = ["--train_json_file", str(tmp_path / "train.json"), "--image_root", str(tmp_path)]
    flags += ["--meta_json_file", str(tmp_path / "meta.json"), "--device", "cpu"]
    data = load_data(parse_arguments([*flags, "--weights_path", str(tmp_path / "run")]))
    assert data.train[0].accuracies == [0.6363]
    assert len(data.meta[0].prompts) == 2 and data.meta[0].true_false


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_python_names_what_exists(page):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names)
            elif isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "model":
                assert hasattr(RewardModel, node.attr), node.attr
