"""Kill a training run at random moments, resume it each time, compare with an undisturbed run.

    python -m benchmarks.kill_and_resume --kills 50
    python -m benchmarks.kill_and_resume --copies 60

The run saves after every step, so a large share of the kills (SIGKILL: nothing can be caught or
tidied up) lands in the middle of writing a checkpoint. After every kill the checkpoint must open
and belong to one step throughout; the final weights and metrics must equal, bit for bit, those of
the run that was left alone. With ``--copies`` every killed run is copied in one of six ways, which
lose or replace its links, and goes on in the copy.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

import main as program
from reweighting.reproduce.configs import DEMO
from reweighting.system.checkpoints import finding, opening

CLOCK = ("samples_per_second", "peak_memory_gib", "waiting")


def flags(run: Path, steps: int, workers: int) -> list[str]:
    """Arguments of a run on the demo data that saves after every step."""
    return [
        *("--train_json_file", str(DEMO.train), "--meta_json_file", str(DEMO.meta)),
        *("--image_root", str(DEMO.image_root), "--weights_path", str(run)),
        *("--reward_model", "weights/tiny-qwen2-vl"),
        *("--device", "cpu", "--precision", "fp32", "--num_workers", str(workers)),
        *("--batch_size", "2", "--meta_batch_size", "2", "--unroll_steps", "2", "--lr", "1e-4"),
        *("--iteration_num", str(steps), "--save_every_iterations", "1", "--logging_steps", "3"),
        *(["--resume"] if finding.exists(run) else []),
    ]


def train(arguments: list[str]) -> None:
    """Body of the child process."""
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os.dup2(2, 1)
    sys.exit(program.main(arguments))


def start(run: Path, steps: int, workers: int) -> multiprocessing.Process:
    # Forked, so that each of the many runs does not import torch anew.
    process = multiprocessing.get_context("fork").Process(
        target=train, args=(flags(run, steps, workers),)
    )
    process.start()
    return process


def learned(run: Path) -> dict[str, torch.Tensor]:
    """All weights of the current checkpoint."""
    folder = finding.current(run)
    return {
        **load_file(folder / "base_model" / "model.safetensors"),
        **torch.load(folder / "LN_weights.pt", weights_only=True),
        **torch.load(folder / "domain_weights.pt", weights_only=True)["module"],
    }


def metrics(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in lines]


def intact(run: Path) -> int | None:
    """The step of the current checkpoint, or None before the first; raises if it is torn."""
    if not finding.exists(run):
        return None
    iteration = opening.load_state(run)["iteration"]
    # The run's own folder, if only its top level was copied.
    assert finding.current(run).name in (run.name, f"step-{iteration:08d}")
    assert all(value.isfinite().all() for value in learned(run).values())
    return iteration


def reached(run: Path) -> int | None:
    """The step of the newest complete checkpoint, by its folder's name, while it may be moving."""
    folder = finding.find(run)
    return int(folder.name.split("-")[1]) if folder and folder.name[:5] == "step-" else None


def keep_links(source: Path, target: Path) -> None:
    """As ``cp -r``."""
    shutil.copytree(source, target, symlinks=True)


def follow_links(source: Path, target: Path) -> None:
    """As ``cp -rL`` and ``scp -r``."""
    shutil.copytree(source, target)


def skip_links(source: Path, target: Path) -> None:
    """As ``rsync -r`` without ``-l``."""

    def links(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if (Path(folder) / name).is_symlink()]

    shutil.copytree(source, target, ignore=links)


def hub(source: Path, target: Path) -> None:
    """As an upload to a hub, which follows links, and its cache, which links to blobs elsewhere."""
    blobs = target.with_name(target.name + ".blobs")
    blobs.mkdir()
    follow_links(source, target)
    for number, path in enumerate(sorted(p for p in target.rglob("*") if p.is_file())):
        blob = blobs / str(number)
        path.rename(blob)
        path.symlink_to(blob)


def windows_zip(source: Path, target: Path) -> None:
    """As through a zip file that keeps links, unpacked where there are none: texts of targets."""
    archive = target.with_name(target.name + ".zip")
    with zipfile.ZipFile(archive, "w") as file:
        for folder, folders, names in os.walk(source):
            for path in (Path(folder) / name for name in [*folders, *names]):
                inside = path.relative_to(source).as_posix()
                if path.is_symlink():
                    file.writestr(inside, os.readlink(path))
                elif path.is_file():
                    file.write(path, inside)
    with zipfile.ZipFile(archive) as file:
        file.extractall(target)
    archive.unlink()


def top_level(source: Path, target: Path) -> None:
    """As the published files picked by hand, without the folders of checkpoints."""
    shutil.copytree(
        source, target, ignore=shutil.ignore_patterns("checkpoints", "checkpoint", "*.unfinished")
    )


COPIES: dict[str, Callable[[Path, Path], None]] = {
    "links kept": keep_links,
    "links followed": follow_links,
    "links skipped": skip_links,
    "hub": hub,
    "zip with texts for links": windows_zip,
    "top level only": top_level,
}


def kill_and_copy(runs: int, steps: int, workers: int, rng: random.Random, folder: Path) -> int:
    """Kill ``runs`` runs and go on in copies; returns how many were lost or ended differently."""
    whole = folder / "whole"
    process = start(whole, steps, workers)
    process.join()
    assert process.exitcode == 0
    wanted, wanted_metrics, wrong = learned(whole), metrics(whole), 0
    for number in range(runs):
        way = list(COPIES)[number % len(COPIES)]
        killed, copy = folder / f"{number}", folder / f"{number}-copy"
        process = start(killed, steps, workers)
        wanted_step = rng.randrange(1, steps)
        while process.exitcode is None and (reached(killed) or 0) < wanted_step:
            time.sleep(0.01)
        process.join(rng.uniform(0.1, 1.0))
        process.kill()
        process.join()
        step = intact(killed)
        COPIES[way](killed, copy)
        found = intact(copy) if finding.exists(copy) else None
        process = start(copy, steps, workers)
        process.join()
        same = process.exitcode == 0 and found is not None
        if same:
            ours = learned(copy)
            same = all(torch.equal(ours[name], value) for name, value in wanted.items())
            same = same and ours.keys() == wanted.keys() and metrics(copy) == wanted_metrics
        wrong += not same
        print(
            f"{number + 1}: {way}: killed after step {step}, copy went on from {found}: "
            f"{'equal' if same else 'DIFFERENT'}",
            flush=True,
        )
        for path in folder.glob(f"{number}*"):
            shutil.rmtree(path)
    return wrong


def main() -> int:
    """Command line; exit code 1 if a checkpoint was torn or the runs differ."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="number of kills (default: 50)")
    parser.add_argument("--copies", type=int, help="runs to kill, copy and go on with, instead")
    parser.add_argument("--steps", type=int, help="lower steps (default: 300, with --copies 24)")
    parser.add_argument("--workers", type=int, default=1, help="data workers (default: 1)")
    parser.add_argument(
        "--seed", type=int, default=0, help="random seed of the moments (default: 0)"
    )
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    torch.set_num_threads(1)
    if arguments.copies:
        steps = arguments.steps or 24
        with tempfile.TemporaryDirectory() as folder:
            wrong = kill_and_copy(arguments.copies, steps, arguments.workers, rng, Path(folder))
        print(f"{arguments.copies} runs killed, copied and resumed: {wrong} lost or different")
        return 1 if wrong else 0
    arguments.steps = arguments.steps or 300

    with tempfile.TemporaryDirectory() as folder:
        killed, whole = Path(folder) / "killed", Path(folder) / "whole"
        kills = torn = during_save = 0
        step = None
        while kills < arguments.kills:
            process = start(killed, arguments.steps, arguments.workers)
            process.join(rng.uniform(1.0, 8.0))
            if process.exitcode is not None:
                print(f"the run ended after {kills} kills: give more --steps")
                return 1
            process.kill()
            process.join()
            kills += 1
            during_save += bool(list(killed.glob("checkpoints/*.unfinished")))
            try:
                step = intact(killed)
            except Exception as error:
                torn += 1
                print(f"kill {kills}: torn checkpoint: {error!r}")
            print(f"kill {kills}: checkpoint at step {step}", flush=True)
        for run in (killed, whole):
            process = start(run, arguments.steps, arguments.workers)
            process.join()
            assert process.exitcode == 0
        ours, theirs = learned(killed), learned(whole)
        same = ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)
        same_metrics = metrics(killed) == metrics(whole)
    print(
        f"{kills} kills, {during_save} of them while a checkpoint was being written: {torn} torn "
        f"checkpoints; final weights {'equal' if same else 'DIFFER'}, metrics "
        f"{'equal' if same_metrics else 'DIFFER'} bit for bit after {arguments.steps} steps"
    )
    return 0 if same and same_metrics and not torn else 1


if __name__ == "__main__":
    started = time.monotonic()
    code = main()
    print(f"{time.monotonic() - started:.0f} s")
    sys.exit(code)
