"""Several trainings over several seeds, compared on the same candidates.

A study trains every variant with every seed (``main.py``), scores the candidates of the held-out
sets with each model (``python -m reweighting.selection``), and keeps all of it in one directory:
what is there is not done again, and an interrupted command goes on. A seed may have data of its
own: ``{seed}`` stands for its number in every path of data and every flag of a variant, and
``{work}`` in a flag for the study's directory, so that a variant can build on another one's run.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from ..selection.__main__ import AGGREGATION_NAMES, RESULTS_FILE
from ..selection.best_of_n import Pool, evaluate
from ..selection.identity import SAMPLES_FILE
from ..system.checkpoints import finding
from ..system.files import complete_lines, read_json, write_json

SECONDS_FILE = "seconds.json"
SETTINGS_FILE = "settings.json"
VALIDATION = "validation"


class CommandFailed(Exception):
    """A command of the study ended with an error, which it has printed."""


@dataclass(frozen=True)
class Setup:
    """What a study trains on, with which program, and what it compares on.

    Args:
        flags: of the program, shared by all variants; the reward model is among them.
        sets: candidates files of the held-out sets, by name.
        train_root: folder of the training images, where it is not ``image_root``.
        checkpoint: the folder within a run whose model is judged; the run itself, unless given.
        selected: folder within a run for what selection writes.
        program: the repository's ``main.py``; the current folder's, unless given.
    """

    train: Path
    meta: Path
    validation: Path
    sets: dict[str, Path]
    image_root: Path
    flags: tuple[str, ...]
    device: str = "cpu"
    precision: str = "fp32"
    train_root: Path | None = None
    checkpoint: str = "."
    selected: str = "selected"
    program: Path = Path("main.py")

    def missing(self) -> list[Path]:
        """Files of data that do not exist."""
        files = [self.train, self.meta, self.validation, *self.sets.values(), self.image_root]
        return [file for file in files if not file.exists()]

    def candidates(self, name: str) -> Path:
        """The file of a held-out set, or of ``validation``."""
        return self.validation if name == VALIDATION else self.sets[name]

    def of(self, seed: int) -> Setup:
        """The same with the data of a seed."""

        def own(path: Path) -> Path:
            return Path(str(path).format(seed=seed))

        return replace(
            self, train=own(self.train), meta=own(self.meta), validation=own(self.validation),
            sets={name: own(path) for name, path in self.sets.items()},
            image_root=own(self.image_root),
            train_root=self.train_root and own(self.train_root),
        )  # fmt: skip


def run_quietly(command: Sequence[str]) -> int:
    """Run ``python <command>`` in a process of its own and return its exit code.

    Its progress and its errors are shown; the table at its end would be one of many.
    """
    return subprocess.run([sys.executable, *command], stdout=subprocess.DEVNULL).returncode


def folder_name(variant: str, seed: int) -> str:
    """Of a run within its study."""
    return f"{variant.replace(' ', '_').replace('/', '_')}_seed{seed}"


def other_settings(folder: Path, settings: dict) -> str | None:
    """What the runs that a folder holds have in common, where it is not ``settings``."""
    file = folder / SETTINGS_FILE
    found = read_json(file) if file.exists() else settings
    for name, value in settings.items():
        if found.get(name) != value:
            return f"{file}: the runs here have {name} {found.get(name)}, not {value}"
    return None


def silent(text: str) -> None:
    """Say nothing of what a study is about to do."""


class Study:
    """Runs of ``variants`` (flags by name) with ``seeds``, kept in ``work``.

    Args:
        run: runs a command, the words after ``python``, and returns its exit code.
    """

    def __init__(
        self,
        setup: Setup,
        work: Path,
        variants: Mapping[str, Sequence[str]],
        seeds: Iterable[int],
        run: Callable[[Sequence[str]], int] = run_quietly,
    ) -> None:
        self.setup, self.work = setup, work
        self.variants, self.seeds = variants, list(seeds)
        self.run = run

    def folder(self, variant: str, seed: int) -> Path:
        """The directory of a run."""
        return self.work / folder_name(variant, seed)

    def train(self, say: Callable[[str], None] = silent) -> None:
        """Train what is not trained yet, seed by seed.

        Raises:
            CommandFailed: a training ended with an error.
        """
        for seed in self.seeds:
            for variant in self.variants:
                self.train_run(variant, seed, say)

    def train_run(self, variant: str, seed: int, say: Callable[[str], None] = silent) -> None:
        """Train a variant with a seed, unless it is trained.

        Raises:
            CommandFailed: the training ended with an error.
        """
        run = self.folder(variant, seed)
        if (run / SECONDS_FILE).exists():
            return
        say(f"training {variant}, seed {seed} …")
        started = time.monotonic()
        self._do(run, self._training(run, seed, self.variants[variant]))
        write_json(run / SECONDS_FILE, time.monotonic() - started)

    def _training(self, run: Path, seed: int, flags: Sequence[str]) -> list[str]:
        setup = self.setup.of(seed)
        root = setup.train_root or setup.image_root
        command = [
            *(str(setup.program), *setup.flags, "--train_json_file", str(setup.train)),
            *("--meta_json_file", str(setup.meta), "--image_root", str(root)),
            *("--weights_path", str(run), "--seed", str(seed)),
            *(flag.format(work=self.work, seed=seed) for flag in flags),
        ]
        return [*command, "--resume"] if finding.exists(run) else command

    def score(self, names: Sequence[str], say: Callable[[str], None] = silent) -> None:
        """Score the candidates of the sets ``names`` with every run that has not scored them yet.

        Raises:
            CommandFailed: a selection ended with an error.
        """
        for seed in self.seeds:
            for variant in self.variants:
                self.score_run(variant, seed, names, say)

    def score_run(
        self, variant: str, seed: int, names: Sequence[str], say: Callable[[str], None] = silent
    ) -> None:
        """Score the sets ``names`` with one run, unless it has scored them.

        Raises:
            CommandFailed: the selection ended with an error.
        """
        run = self.folder(variant, seed)
        files = [self.setup.of(seed).candidates(name) for name in names]
        results = run / self.setup.selected / RESULTS_FILE
        if results.exists() and read_json(results).keys() >= {file.stem for file in files}:
            return
        say(f"scoring with {variant}, seed {seed} …")
        self._do(run, self._selection(run, seed, files))

    def _selection(self, run: Path, seed: int, files: Sequence[Path]) -> list[str]:
        setup = self.setup.of(seed)
        return [
            *("-m", "reweighting.selection", "--weights_path", str(run / setup.checkpoint)),
            *("--candidates", *map(str, files), "--image_root", str(setup.image_root)),
            *("--output_dir", str(run / setup.selected)),
            *("--device", setup.device, "--precision", setup.precision),
        ]

    def _do(self, run: Path, command: Sequence[str]) -> None:
        if code := self.run(command):
            raise CommandFailed(f"{run.name}: exit code {code}")

    def seconds(self, variant: str, seed: int) -> float:
        """How long a training took (its last part, if it was interrupted)."""
        return read_json(self.folder(variant, seed) / SECONDS_FILE)

    @cached_property
    def weights(self) -> dict[str, list[dict[str, float]]]:
        """Learned domain weights, one dictionary per seed, of the variants that learn them."""
        found = {}
        for variant in self.variants:
            runs = [finding.locate(self.folder(variant, seed)) for seed in self.seeds]
            files = [run / finding.DOMAIN_JSON for run in runs]
            if all(file.exists() for file in files):
                found[variant] = [read_json(file) for file in files]
        return found

    def _lines(self, variant: str, seed: int, name: str) -> list[dict]:
        folder = self.folder(variant, seed) / self.setup.selected
        return complete_lines(folder / self.setup.candidates(name).stem / SAMPLES_FILE)

    def log_odds(self, variant: str, seed: int, name: str) -> list[list[list[float]]]:
        """Log-odds of every prefix of every candidate of a set, after :meth:`score`."""
        return [line["step_log_odds"] for line in self._lines(variant, seed, name)]

    def pools(self, variant: str, seed: int, name: str) -> list[Pool]:
        """The questions of a set with this run's scores, under every aggregation."""
        return [
            Pool.of(line["candidates"], line["true_false"], line["step_log_odds"],
                    AGGREGATION_NAMES, line.get("choices"))
            for line in self._lines(variant, seed, name)
        ]  # fmt: skip

    def right(self, variant: str, name: str, size: int = 8) -> dict[str, np.ndarray]:
        """Accuracy of each way to choose among ``size`` candidates, ``[seeds, questions]``."""
        by_seed = [evaluate(self.pools(variant, seed, name), [size]) for seed in self.seeds]
        return {
            method: np.stack([found[method][size] for found in by_seed]) for method in by_seed[0]
        }
