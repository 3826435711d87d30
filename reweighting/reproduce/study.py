"""Several trainings over several seeds, compared on the same candidates.

A study trains every variant with every seed (`main.py` in a process of its own), scores the
candidates of the held-out sets with each model, and keeps all of it in one directory: what is there
is not done again, and an interrupted training goes on.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..checkpoints import finding
from ..files import json_line, read_json, write_json, write_text
from ..records.reader import RecordReader, load_candidates
from ..records.samples import CandidatesSample
from ..reward_model.aggregation import AGGREGATIONS, LogOdds
from ..reward_model.model import RewardModel
from ..reward_model.scoring import score_candidates
from ..selection.best_of_n import Pool, evaluate

REPOSITORY = Path(__file__).resolve().parents[2]
DONE_FILE = "seconds.json"


@dataclass(frozen=True)
class Setup:
    """What a study trains on, from which model, and what it compares on.

    Args:
        flags: of ``main.py``, shared by all variants.
        sets: candidates files of the held-out sets, by name.
    """

    train: Path
    meta: Path
    validation: Path
    sets: dict[str, Path]
    image_root: Path
    reward_model: str
    flags: tuple[str, ...]
    device: str = "cpu"
    precision: str = "fp32"

    def missing(self) -> list[Path]:
        """Files that are not there."""
        files = [self.train, self.meta, self.validation, *self.sets.values(), self.image_root]
        return [file for file in files if not file.exists()]


class Study:
    """Runs of ``variants`` (flags by name) with ``seeds``, kept in ``work``."""

    def __init__(
        self, setup: Setup, work: Path, variants: dict[str, Sequence[str]], seeds: Sequence[int]
    ) -> None:
        self.setup, self.work = setup, work.resolve()
        self.variants, self.seeds = variants, list(seeds)

    def folder(self, variant: str, seed: int) -> Path:
        """Where a run is."""
        return self.work / f"{variant.replace(' ', '_').replace('/', '_')}_seed{seed}"

    def train(self, say: Callable[[str], None] = lambda text: None) -> None:
        """Train what is not trained yet, seed by seed."""
        for seed in self.seeds:
            for variant, flags in self.variants.items():
                if not (self.folder(variant, seed) / DONE_FILE).exists():
                    say(f"training {variant}, seed {seed} …")
                    self._train(self.folder(variant, seed), seed, flags)

    def _train(self, run: Path, seed: int, flags: Sequence[str]) -> None:
        started = time.monotonic()
        setup = self.setup
        command = [
            *(sys.executable, str(REPOSITORY / "main.py"), "--train_json_file", str(setup.train)),
            *("--meta_json_file", str(setup.meta), "--image_root", str(setup.image_root)),
            *(
                "--weights_path",
                str(run),
                "--reward_model",
                setup.reward_model,
                "--seed",
                str(seed),
            ),
            *("--device", setup.device, "--precision", setup.precision),
            *setup.flags,
            *flags,
        ]
        if finding.exists(run):
            command.append("--resume")
        # Its progress and its errors go to the terminal; the table at its end would be one of many.
        done = subprocess.run(command, stdout=subprocess.DEVNULL)
        if done.returncode:
            raise RuntimeError(f"{run.name}: exit code {done.returncode}")
        write_json(run / DONE_FILE, time.monotonic() - started)

    def seconds(self, variant: str, seed: int) -> float:
        """How long a run took (its last part, if it was interrupted)."""
        return read_json(self.folder(variant, seed) / DONE_FILE)

    @cached_property
    def weights(self) -> dict[str, list[dict[str, float]]]:
        """Learned domain weights, one a seed, of the variants that learn them."""
        found = {}
        for variant in self.variants:
            runs = [finding.locate(self.folder(variant, seed)) for seed in self.seeds]
            files = [run / finding.DOMAIN_JSON for run in runs]
            if all(file.exists() for file in files):
                found[variant] = [read_json(file) for file in files]
        return found

    def samples(self, name: str) -> list[CandidatesSample]:
        """The questions of a held-out set, or of ``validation``."""
        path = self.setup.validation if name == "validation" else self.setup.sets[name]
        return load_candidates(RecordReader(str(path), str(self.setup.image_root)))

    @torch.no_grad()
    def log_odds(self, variant: str, seed: int, name: str, blank: bool = False) -> list[LogOdds]:
        """Log-odds of every prefix of every candidate of a set; ``blank`` hides the images."""
        run = self.folder(variant, seed)
        path = run / f"scores_{name}{'_blank' if blank else ''}.json"
        if not path.exists():
            samples = self.samples(name)
            if blank:
                samples = [_blanked(sample, self.work) for sample in samples]
            model = RewardModel.from_pretrained(run, device=self.setup.device).eval()
            batches = score_candidates(model, samples, precision=self.setup.precision)
            write_text(path, json_line([question for batch in batches for question in batch]))
        return read_json(path)

    def pools(self, variant: str, seed: int, name: str, blank: bool = False) -> list[Pool]:
        """The questions of a set with this run's scores, under every aggregation."""
        scores = self.log_odds(variant, seed, name, blank)
        return [
            Pool.of(sample.candidates, sample.true_false, z, list(AGGREGATIONS))
            for sample, z in zip(self.samples(name), scores, strict=True)
        ]

    def right(
        self, variant: str, name: str, size: int = 8, blank: bool = False
    ) -> dict[str, np.ndarray]:
        """Accuracy of each way to choose among ``size`` candidates, ``[seeds, questions]``."""
        by_seed = [evaluate(self.pools(variant, seed, name, blank), [size]) for seed in self.seeds]
        return {
            method: np.stack([found[method][size] for found in by_seed]) for method in by_seed[0]
        }


def _blanked(sample: CandidatesSample, work: Path) -> CandidatesSample:
    """The same question with an empty image of the same size."""
    size = Image.open(sample.image).size
    path = work / f"blank_{size[0]}x{size[1]}.png"
    if not path.exists():
        Image.new("RGB", size, "white").save(path)
    return replace(sample, image=str(path))
