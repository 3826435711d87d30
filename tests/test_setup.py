"""Set-up: the lock, the package, and commands that print their own text only."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import main as program
from tests.conftest import REPOSITORY, TINY, command

LOCK = (REPOSITORY / "requirements.lock").read_text()
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
MACHINES = {
    "Linux": {"sys_platform": "linux", "platform_machine": "x86_64"},
    "Linux on ARM": {"sys_platform": "linux", "platform_machine": "aarch64"},
    "macOS": {"sys_platform": "darwin", "platform_machine": "arm64"},
}


def python(*arguments: str, folder: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    """Run this Python in a process of its own, from ``folder``."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=300
    )


def requirements(text: str) -> list[Requirement]:
    """The requirements of a file for pip, without hashes and comments."""
    lines = (re.split(r"\s#|\\$", line)[0].strip() for line in text.splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith(("#", "--"))]


def optional_requirements() -> list[Requirement]:
    """Those of the extras in pyproject.toml."""
    table = (REPOSITORY / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1]
    found = [Requirement(text) for text in re.findall(r'"(.+?)"', table.split("\n[")[0])]
    return [requirement for requirement in found if requirement.name != "dreamprm"]


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("version", PYTHONS)
def test_the_lock_has_one_allowed_version_of_everything(version: str, machine: str) -> None:
    environment = MACHINES[machine] | {
        "python_version": version,
        "python_full_version": f"{version}.0",
    }

    def applies(requirement: Requirement) -> bool:
        return requirement.marker is None or requirement.marker.evaluate(environment)

    locked: dict[str, str] = {}
    for requirement in filter(applies, requirements(LOCK)):
        assert requirement.name not in locked
        (pin,) = requirement.specifier
        assert pin.operator == "=="
        locked[requirement.name] = pin.version
    wanted = requirements((REPOSITORY / "requirements.txt").read_text()) + optional_requirements()
    assert len(wanted) > 15
    for requirement in filter(applies, wanted):
        assert requirement.specifier.contains(locked[requirement.name]), requirement.name
    assert "betty-ml" in locked


def test_the_lock_names_files_by_hash_and_no_index() -> None:
    entries = re.split(r"\n(?=\S)", LOCK.strip())
    assert len(entries) > 80
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in LOCK
    assert not re.search(r"^-", LOCK, re.MULTILINE)


def test_betty_is_the_same_everywhere() -> None:
    named = re.compile(r"betty-ml==[\d.]+\d")
    places = ["requirements.txt", "requirements.lock", "Makefile", "pyproject.toml", "README.md"]
    texts = {place: (REPOSITORY / place).read_text() for place in places}
    texts["main.py"] = program.BETTY_INSTALL
    for place, text in texts.items():
        assert set(named.findall(text)) == {"betty-ml==0.2.1"}, place


def test_the_clone_is_a_package(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")  # the one pyproject.toml asks for
    clone = tmp_path / "clone"
    shutil.copytree(REPOSITORY / "reweighting", clone / "reweighting")
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, clone)
    for other in ("benchmarks", "weights", "data", "figs"):  # what automatic discovery stumbles on
        (clone / other).mkdir()
        (clone / other / "__init__.py").touch()
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"
    built = python("-c", build, folder=clone)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("dreamprm-0.1.0-*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    described = installed / "dreamprm-0.1.0.dist-info"
    assert set(installed.iterdir()) == {installed / "reweighting", described}
    assert (installed / "reweighting" / "py.typed").exists()
    assert len(list((installed / "reweighting" / "report").glob("page.*"))) == 4
    metadata = (described / "METADATA").read_text()
    needed = [Requirement(text) for text in re.findall(r"^Requires-Dist: (.+)$", metadata, re.M)]
    runtime = {r.name: r.specifier for r in needed if "extra" not in str(r.marker)}
    ranges = requirements((REPOSITORY / "requirements.txt").read_text())
    assert runtime == {r.name: r.specifier for r in ranges}
    extras = set(re.findall(r"^Provides-Extra: (.+)$", metadata, re.M))
    assert extras == {"lora", "8bit", "server", "xlsx", "dev"}
    assert SpecifierSet(re.search(r"^Requires-Python: (.+)$", metadata, re.M)[1]).contains("3.10")
    use = (
        f"import sys; sys.path.insert(0, {str(installed)!r})\n"
        "import reweighting.reward_model.model as found; print(found.__file__)"
    )
    used = python("-c", use, folder=tmp_path)
    assert used.returncode == 0, used.stderr
    assert Path(used.stdout.strip()).is_relative_to(installed)


def test_help_and_wrong_flags_need_no_torch() -> None:
    check = (
        "import sys, main\n"
        "try: main.main(sys.argv[1:])\n"
        "except SystemExit as stop: code = stop.code\n"
        "slow = {'torch', 'transformers', 'numpy', 'betty', 'PIL'} & set(sys.modules)\n"
        "sys.exit(f'imported {slow}' if slow else code)"
    )
    helped = python("-c", check, "--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert helped.stdout.startswith("usage: main.py")
    needed = ("--train_json_file", "train.json", "--weights_path", "run", "--baseline")
    wrong = python("-c", check, *needed, "--device", "abacus")
    assert wrong.returncode == 2
    assert wrong.stderr.endswith("--device abacus is no device: cuda, cuda:N or cpu\n")


def test_a_dry_run_prints_its_plan_and_nothing_else(dataset: Path, tmp_path: Path) -> None:
    enough = ("--iteration_num", "200")  # so that weights move; a shorter run is warned
    done = python("main.py", *command(dataset, tmp_path / "run", "--dry_run", *enough))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("train records by domain\n")
    plan = done.stdout.splitlines()
    assert all(re.match(r"(  )?[a-z]+[a-z ]*  +\S|train records by domain$", line) for line in plan)


def test_loading_a_model_prints_nothing() -> None:
    load = (
        "from reweighting import reward_model  # transformers is imported before quiet()\n"
        "from reweighting.system.terminal import quiet\n"
        "quiet()\n"
        f"reward_model.RewardModel.from_pretrained({str(TINY)!r}, score_head='plus_minus')"
    )
    done = python("-c", load)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_wrong_flag_costs_one_line() -> None:
    for words in (["main.py", "--bogus"], ["-m", "reweighting.rollouts", "chains", "--bogus"]):
        wrong = python(*words)
        assert wrong.returncode == 2
        assert wrong.stderr.count("\n") == 1 and ": error: " in wrong.stderr
