"""Rollouts: kills and faults, adaptive labels, overhead of the client, the tiny reasoner.

    python -m benchmarks.rollouts kills
    python -m benchmarks.rollouts labels
    python -m benchmarks.rollouts overhead
    python -m benchmarks.rollouts reasoner

`kills`: labels through a faulty server, killed twice at random (SIGKILL), compared with those of an
undisturbed run. `labels`: error of the accuracy with adaptive and with fixed numbers of rollouts,
given the demo world's exact accuracies. `overhead`: requests per second and memory of the client,
with a server that gives a constant answer. `reasoner`: the tiny reasoner's labels for a domain of
the demo, compared with the simulated reasoner's accuracies.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from data.make_demo import DOMAINS, MIXED, draw_question, stream
from data.world.simulated_reasoner import (
    Chain,
    Profile,
    Question,
    Trap,
    chance,
    rollout,
    sample_chain,
    set_trap,
)
from reweighting.rollouts import __main__ as rollouts
from reweighting.rollouts.labels import posterior_accuracies
from reweighting.rollouts.openai_server import Server
from reweighting.rollouts.reasoner import Query
from reweighting.rollouts.sampler import Sampler
from reweighting.rollouts.schedules import Adaptive, Schedule
from reweighting.system.files import write_records
from reweighting.system.journal import Journal
from reweighting.system.tasks import for_each
from tests.rollouts.commands import write_questions
from tests.support.model_server import model_server

REPOSITORY = Path(__file__).resolve().parents[1]
REASONER = REPOSITORY / "weights" / "tiny-reasoner"


class Silent:
    """Stands in for a progress bar."""

    def set_postfix_str(self, text: str, refresh: bool) -> None: ...

    def update(self) -> None: ...


# ---- kills


def kills(arguments: argparse.Namespace) -> int:
    """Prints what was lost or counted twice; exit code 1 if the runs differ."""
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_questions(folder, arguments.questions)
        candidates = folder / "candidates.json"
        common = ["--image_root", str(folder), "--model", "rule", "--concurrency", "32"]
        outputs = [folder / "undisturbed.json", folder / "disturbed.json"]
        journals = [output.with_suffix(".journal.jsonl") for output in outputs]

        def command(url: str, output: Path) -> list[str]:
            label = ["label", "--candidates", str(candidates), "--output", str(output)]
            return [*label, *common, "--base_url", url, "--timeout", "1"]

        with model_server() as url:
            questions = ["--questions", str(folder / "questions.jsonl"), "--samples", "2"]
            make = ["chains", *questions, "--output", str(candidates), *common, "--base_url", url]
            assert rollouts.main(make) == 0
            assert rollouts.main(command(url, outputs[0])) == 0
        total = len(journals[0].read_text().splitlines())
        log = folder / "answered.log"
        with model_server(faults=arguments.faults, log=log) as url:
            moments = sorted(rng.uniform(0.05, 0.95) for _ in range(2))
            for share in moments:
                process = subprocess.Popen(
                    [sys.executable, "-m", "reweighting.rollouts", *command(url, outputs[1])],
                    cwd=REPOSITORY,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
                while (
                    not journals[1].exists()
                    or journals[1].read_bytes().count(b"\n") < share * total
                ):
                    assert process.poll() is None, "the run ended before it was killed"
                    time.sleep(0.005)
                process.kill()
                process.wait()
                done = journals[1].read_bytes().count(b"\n")
                print(f"killed with {done} of {total} rollouts in the journal")
            assert rollouts.main(command(url, outputs[1])) == 0
        keys = [[json.loads(line)["key"] for line in j.read_text().splitlines()] for j in journals]
        lines = [sorted(journal.read_text().splitlines()) for journal in journals]
        answered = Counter(log.read_text().splitlines())
        same = outputs[0].read_bytes() == outputs[1].read_bytes()
        lost = len(set(keys[0]) - set(keys[1]))
        twice = len(keys[1]) - len(set(keys[1]))
        paid_again = sum(answered.values()) - len(answered)
        print(
            f"{total} rollouts, {arguments.faults:.0%} of the requests faulty: labels "
            f"{'equal' if same else 'DIFFER'} byte for byte, journals "
            f"{'equal' if lines[0] == lines[1] else 'DIFFER'} line for line; {lost} lost, {twice} "
            f"counted twice; {paid_again} completions were answered but not yet recorded when a "
            "kill came, and asked for again"
        )
    return 0 if same and lines[0] == lines[1] and not lost and not twice else 1


# ---- labels

State = tuple[Question, tuple, Profile, Trap | None]


def demo_prefixes(seed: int, count: int) -> tuple[list[State], list[str]]:
    """The states after every step of chains like those of the demo's training set, and their
    domains."""
    states, domains = [], []
    for number in range(count):
        domain = DOMAINS[number % len(DOMAINS)]
        rng = stream(seed, "rollouts benchmark", number)
        profile = MIXED.scaled(domain.errors)
        question = draw_question(rng, domain.name, hint=domain.hint)
        trap = set_trap(rng, question, profile)
        chain = sample_chain(rng, question, profile, trap)
        states += [(question, pieces, profile, trap) for pieces in chain.states]
        domains += [domain.name] * len(chain.states)
    return states, domains


def count(states: list[State], schedule: Schedule, seed: int) -> np.ndarray:
    """Numbers of right rollouts and of all rollouts of every state, ``[prefixes, 2]``."""
    counts = []
    for number, state in enumerate(states):
        rng = stream(seed, "rollouts", number)
        score = times = 0
        while more := schedule.wanted(score, times, times):
            score += sum(rollout(rng, *state) for _ in range(more))
            times += more
        counts.append((score, times))
    return np.array(counts)


def labels(arguments: argparse.Namespace) -> int:
    """Prints a table: rollouts per prefix, and mean absolute errors of both estimates."""
    fixed = {f"fixed {n}": Adaptive(n, n, 0.0) for n in (4, 6, 8, 12, 16)}
    adaptive = {f"adaptive, tolerance {t}": Adaptive(4, 16, t) for t in (0.10, 0.11, 0.12, 0.14)}
    found: dict[str, list[list[float]]] = {}
    for seed in range(arguments.seeds):
        states, domains = demo_prefixes(seed, arguments.questions)
        truth = np.array([chance(*state) for state in states])
        where = {name: np.array(domains) == name for name in set(domains)}
        for name, schedule in {**fixed, **adaptive}.items():
            score, times = count(states, schedule, seed).T
            posterior = np.empty(len(truth))
            for here in where.values():
                posterior[here] = posterior_accuracies(score[here], times[here])
            error = score / times - truth
            row = [times.mean(), abs(error).mean(), abs(posterior - truth).mean(), error.mean()]
            found.setdefault(name, []).append(row)
    print(f"{len(truth)} prefixes, {arguments.seeds} seeds: mean (deviation over seeds)")
    print(
        "| schedule | rollouts a prefix | error, frequency | error, posterior | bias, frequency |"
    )
    print("|---|---|---|---|---|")
    for name, rows in found.items():
        table = np.array(rows)
        means, deviations = table.mean(0), table.std(0)
        cells = [f"{m:.4f} ({d:.4f})" for m, d in zip(means, deviations, strict=True)]
        print(f"| {name} | {means[0]:.2f} | " + " | ".join(cells[1:]) + " |")
    return 0


# ---- overhead


def resident() -> float:
    """Resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def overhead(arguments: argparse.Namespace) -> int:
    """Times everything a run does for a rollout: key, image, request, retry logic, journal."""
    image = str(REPOSITORY / "data" / "images" / "train" / "00000.png")
    with tempfile.TemporaryDirectory() as name, model_server(echo=True) as url:
        os.sched_setaffinity(0, {0})  # the server, started before, may use the other core
        journal = Journal(Path(name) / "journal.jsonl")
        memory = []

        async def run() -> tuple[float, float]:
            server = Server("echo", "Think.", url, concurrency=arguments.concurrency)
            sampler = Sampler(server, journal, 1)

            async def ask(number: int) -> None:
                await sampler.rollouts(Query(f"Question {number}?", image), [0])
                if number % (arguments.requests // 10) == 0:
                    memory.append(resident())

            async def do(numbers: range) -> tuple[float, float]:
                start, used = time.perf_counter(), time.process_time()
                await for_each(numbers, ask, arguments.concurrency, Silent(), str)
                return time.perf_counter() - start, time.process_time() - used

            await do(range(-500, 0))  # opens connections and fills caches
            memory.clear()
            took = await do(range(arguments.requests))
            await server.close()
            return took

        seconds, used = asyncio.run(run())
        journal.close()
    memory.append(resident())
    print(
        f"{arguments.requests} requests at concurrency {arguments.concurrency}: "
        f"{arguments.requests / seconds:.0f} requests/s, "
        f"{1000 * used / arguments.requests:.2f} ms of CPU time each on the client's one core"
    )
    print("memory, MiB, every tenth of the run: " + " ".join(f"{m:.1f}" for m in memory))
    return 0


# ---- the tiny reasoner


def demo_chains(domain: str, count: int) -> tuple[list[Chain], list[State], list[str]]:
    """The first chains of a domain of `data/train.json`, their states and images."""
    number_of = [d.name for d in DOMAINS].index(domain)
    profile = MIXED.scaled(DOMAINS[number_of].errors)
    chains, states, images = [], [], []
    for place in range(count):
        number = place * len(DOMAINS) + number_of
        rng = stream(1, "train", number)
        question = draw_question(rng, domain, hint=DOMAINS[number_of].hint)
        trap = set_trap(rng, question, profile)
        chain = sample_chain(rng, question, profile, trap)
        chains.append(chain)
        states += [(question, pieces, profile, trap) for pieces in chain.states]
        images.append(f"images/train/{number:05d}.png")
    return chains, states, images


def reasoner(arguments: argparse.Namespace) -> int:
    """Labels a domain's prefixes with the tiny reasoner, writes them and prints a comparison."""
    chains, states, images = demo_chains(arguments.domain, arguments.questions)
    with tempfile.TemporaryDirectory() as name:
        candidates = Path(name) / "candidates.json"
        records = [
            {
                "id": int(Path(image).stem),  # as in train.json
                "question": chain.question.text,
                "image_path": image,
                "candidates": [chain.text],
                "answer": chain.question.answer,
                "dataset": arguments.domain,
            }
            for chain, image in zip(chains, images, strict=True)
        ]
        write_records(candidates, records)
        labelled = Path(name) / "labelled.json"
        command = ["label", "--candidates", str(candidates), "--output", str(labelled)]
        command += ["--image_root", str(REPOSITORY / "data"), "--policy", str(REASONER)]
        command += ["--instruction", str(REASONER / "instruction.txt"), "--max_tokens", "160"]
        command += ["--min_rollouts", "16", "--max_rollouts", "16", "--batch_size", "16"]
        assert rollouts.main([*command, "--device", "cpu", "--precision", "fp32"]) == 0
        found = json.loads(labelled.read_text())
    assert len(found) == len(states)
    write_records(arguments.output, found)
    own = np.array([record["accuracy"] for record in found])
    truth = np.array([chance(*state) for state in states])
    steps = np.array([record["sid"] for record in found])
    sound = np.array([question.truth[: len(p)] == p for question, p, _, _ in states])
    trapped = np.array([trap is not None for *_, trap in states])
    print("| prefix | prefixes | tiny reasoner | simulated reasoner |")
    print("|---|---|---|---|")
    for title, kind in (("sound", sound), ("gone wrong", ~sound)):
        for step in range(1, 6):
            here = kind & (steps == step)
            if here.any():
                print(
                    f"| {title}, after step {step} | {here.sum()} | {own[here].mean():.2f} "
                    f"| {truth[here].mean():.2f} |"
                )
    difference = abs(own - truth)
    print(
        f"correlation {np.corrcoef(own, truth)[0, 1]:.2f}; mean absolute difference "
        f"{difference.mean():.3f}: {difference[~trapped].mean():.3f} on the {(~trapped).sum()} "
        f"prefixes of questions without a trap, {difference[trapped].mean():.3f} on the "
        f"{trapped.sum()} with one"
    )
    return 0


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parts = parser.add_subparsers(dest="part", required=True)
    part = parts.add_parser("kills")
    part.add_argument("--questions", type=int, default=60)
    part.add_argument("--faults", type=float, default=0.2)
    part.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    part = parts.add_parser("labels")
    part.add_argument("--questions", type=int, default=600, help="with five prefixes each")
    part.add_argument("--seeds", type=int, default=5)
    part = parts.add_parser("overhead")
    part.add_argument("--requests", type=int, default=20_000)
    part.add_argument("--concurrency", type=int, default=64)
    part = parts.add_parser("reasoner")
    part.add_argument("--domain", default="colour_cell")
    part.add_argument("--questions", type=int, default=100)
    part.add_argument(
        "--output", type=Path, default=REPOSITORY / "data" / "rollouts" / "colour_cell.json"
    )
    arguments = parser.parse_args()
    names = {"kills": kills, "labels": labels, "overhead": overhead, "reasoner": reasoner}
    return names[arguments.part](arguments)


if __name__ == "__main__":
    sys.exit(main())
