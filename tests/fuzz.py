"""A seeded fuzzer: whatever a file or a server holds, the answer is a result or a clear error.

    python -m tests.fuzz --cases 10000
    python -m tests.fuzz --only images --first 417 --cases 1 --show

Each case takes good input of one kind, spoils one thing in it and runs a command of the project on
it, in this process; :mod:`tests.spoiling` is what spoils. A case fails if

- an exception escapes the command, or a traceback or a Python warning is printed;
- the exit code is neither 0 nor 2 (rollouts: 1 where every answer of the server was lost);
- an error does not name the spoiled file, or the terminal gets characters it would obey;
- it takes more than 5 s of CPU time, 120 s in all, or 500 MB of memory.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import io
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.conftest import command, write_dataset
from tests.exchange.layouts import published_rows
from tests.spoiling import as_text, odd, spoil_bytes, spoil_image, spoil_value, to_bytes

CPU_SECONDS, SECONDS, MEGABYTES = 5.0, 120.0, 500


@dataclass
class Case:
    """One spoiled input.

    Args:
        run: the command on it; returns the exit code.
        named: an error must name one of these; none where no file is at fault.
        codes: exit codes that are in order.
    """

    run: Callable[[], int]
    named: tuple[str, ...]
    codes: tuple[int, ...] = (0, 2)


@dataclass
class Workshop:
    """Good inputs of every kind, and a place to spoil copies of them."""

    root: Path
    questions: int = 5
    server: ThreadingHTTPServer | None = None
    answers: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        import main
        from reweighting.selection import __main__ as selection

        self.data = write_dataset(self.root / "data", self.questions)
        train = json.loads((self.data / "train.json").read_text())
        self.train = train
        self.meta = json.loads((self.data / "meta.json").read_text())
        self.chats = [_as_chat(record) for record in self.meta]
        self.candidates = [
            {
                "question": f"Question: which colour has object {n}?\nA. red\nB. blue",
                "image_path": f"images/{n}.png",
                "candidates": [
                    f"Step 1: it is red.\nStep 2: so {k}.\nFinal answer: {'AB'[k % 2]}"
                    for k in range(3)
                ],
                "answer": "A",
                "choices": ["red", "blue"],
                "dataset": "colours",
            }
            for n in range(self.questions)
        ]
        self.asked = [
            {
                "question": f"which colour [50] has object {n}?",
                "image_path": f"images/{n}.png",
                "answer": "red",
                "dataset": "colours",
            }
            for n in range(2)
        ]
        self.run = self.root / "run"
        short = ("--iteration_num", "2", "--unroll_steps", "1")
        assert self.quiet(lambda: main.main(command(self.data, self.run, *short))) == 0
        (self.data / "candidates.json").write_text(json.dumps(self.candidates))
        self.chosen = self.root / "chosen"
        again = self.selecting(self.data / "candidates.json", self.chosen)
        assert self.quiet(lambda: selection.main(again)) == 0

    @staticmethod
    def quiet(run: Callable[[], int]) -> int:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return run()

    def selecting(self, candidates: Path, output: Path, run: Path | None = None) -> list[str]:
        """Arguments of a selection."""
        return [
            *("--weights_path", str(run or self.run), "--candidates", str(candidates)),
            *("--image_root", str(self.data), "--output_dir", str(output)),
            *("--device", "cpu", "--precision", "fp32"),
        ]

    def copy(self, folder: Path, target: Path, spoiled: Path | None = None) -> Path:
        """A copy of ``folder`` that shares all its files but the ``spoiled`` one."""

        def link(source: str, destination: str) -> None:
            if spoiled is not None and Path(source).resolve() == spoiled.resolve():
                shutil.copyfile(source, destination)
            else:
                os.link(os.path.realpath(source), destination)

        shutil.copytree(folder, target, symlinks=True, copy_function=link)
        return target


def _as_chat(record: dict) -> dict:
    """A meta record in the format of DreamPRM-1.5."""
    question, *steps = record["input"].replace("\n\n", "\n").split("\n")
    turns = [{"from": "human", "value": f"<image>\n{question}"}]
    for step in steps[:-1]:
        turns += [{"from": "human", "value": step}, {"from": "gpt", "value": "+"}]
    rest = {"image": record["image_path"], "true_false": record["true_false"], "dataset": "chat"}
    return {"id": str(record["id"]), "conversations": turns, **rest}


def records(rng: random.Random, shop: Workshop, folder: Path) -> Case:
    """The two files of a training run, in both formats: ``main.py --dry_run``."""
    import main

    name = rng.choice(["train", "meta"])
    good = shop.chats if rng.random() < 0.3 else getattr(shop, name)
    body = _spoiled_records(rng, good)
    path = folder / f"spoiled_{name}.json"
    path.write_bytes(body)
    plus_minus = ["--score_head", "plus_minus"]
    extra = rng.choice([[], ["--skip_bad_records"], plus_minus, [*plus_minus, "--history", "gold"]])
    extra = [*extra, *rng.choice([[], ["--batch_by", "cot"]])]
    argv = command(shop.data, folder / "run", f"--{name}_json_file", str(path), "--dry_run", *extra)
    return Case(lambda: main.main(argv), (path.name,))


def _spoiled_records(rng: random.Random, good: list[dict]) -> bytes:
    lines = rng.random() < 0.5
    if rng.random() < 0.7:
        value = list(good)
        for _ in range(rng.choice([1, 1, 1, 3])):
            value = spoil_value(rng, value) if rng.random() < 0.1 else value
            if isinstance(value, list) and value:
                place = rng.randrange(len(value))
                value[place] = spoil_value(rng, value[place])
        return to_bytes(rng, value, lines)
    return spoil_bytes(rng, to_bytes(rng, good, lines))


def candidates(rng: random.Random, shop: Workshop, folder: Path) -> Case:
    """A candidates file: ``reweighting.selection``."""
    from reweighting.selection import __main__ as selection

    path = folder / "spoiled_candidates.json"
    path.write_bytes(_spoiled_records(rng, shop.candidates))
    argv = shop.selecting(path, folder / "chosen")
    return Case(lambda: selection.main(argv), (path.name,))


def images(rng: random.Random, shop: Workshop, folder: Path) -> Case:
    """An image of a record: ``main.py --dry_run``."""
    import main

    path = folder / "spoiled_image.png"
    spoil_image(rng, path)
    record = {**shop.train[0], "image_path": path.name}
    shutil.copytree(shop.data / "images", folder / "images", copy_function=os.link)
    (folder / "train.json").write_text(json.dumps([record, *shop.train[1:]]))
    argv = command(
        shop.data,
        folder / "run",
        *("--train_json_file", str(folder / "train.json"), "--image_root", str(folder)),
        *("--dry_run",),
    )
    return Case(lambda: main.main(argv), (path.name,))


def checkpoints(rng: random.Random, shop: Workshop, folder: Path) -> Case:
    """A file of a finished run: resumed, scored with, or started from."""
    import main
    from reweighting.selection import __main__ as selection

    files = sorted(path for path in shop.run.resolve().rglob("*") if path.is_file())
    path = rng.choice(sorted({file.resolve() for file in files if file.name != ".lock"}))
    copy = shop.copy(shop.run, folder / "run", path)
    spoiled = copy / path.relative_to(shop.run.resolve())
    body = path.read_bytes()
    if path.suffix == ".json" and rng.random() < 0.6:
        body = to_bytes(rng, spoil_value(rng, json.loads(body)))
    elif rng.random() < 0.15:
        body = rng.choice(files).read_bytes()
    else:
        body = spoil_bytes(rng, body)
    if rng.random() < 0.1:
        spoiled.unlink()
    else:
        spoiled.write_bytes(body)
    use = rng.randrange(3)
    if use == 0:
        argv = shop.selecting(shop.data / "candidates.json", folder / "chosen", copy)
        return Case(lambda: selection.main(argv), ("run",))
    short = ("--iteration_num", "2", "--unroll_steps", "1")
    if use == 1:
        argv = command(shop.data, copy, *short, "--resume", "--dry_run")
    else:
        argv = command(shop.data, folder / "new", "--reward_model", str(copy), "--dry_run")
    return Case(lambda: main.main(argv), ("run",))


def results(rng: random.Random, shop: Workshop, folder: Path) -> Case:
    """What an earlier selection left: the same command goes on from it."""
    from reweighting.selection import __main__ as selection

    files = sorted(path for path in shop.chosen.rglob("*") if path.is_file())
    path = rng.choice([file for file in files if file.name != ".lock"])
    copy = shop.copy(shop.chosen, folder / "chosen", path)
    spoiled = copy / path.relative_to(shop.chosen)
    spoiled.write_bytes(spoil_bytes(rng, path.read_bytes()))
    argv = shop.selecting(shop.data / "candidates.json", copy)
    return Case(lambda: selection.main(argv), ("chosen",))


def exchange(rng: random.Random, shop: Workshop, folder: Path) -> Case:
    """Files of other evaluation tools, and our own on the way back."""
    from reweighting.exchange import __main__ as exchange

    output = folder / "out.json"
    kind = rng.randrange(6)
    path = folder / "spoiled.jsonl"
    if kind > 3:
        direction, rows = rng.choice(list(published_rows().items()))
        path.write_bytes(_spoiled_records(rng, rows * 2))
        argv = [direction, "--source", str(path), "--output", str(output)]
        argv += rng.choice([[], ["--held_out", "2", "--limit", "3"]])
    elif kind == 0:
        logged = [
            {
                "doc_id": n,
                "doc": {"question": f"what is {n}?", "image_path": f"images/{n}.png"},
                "target": "red",
                "resps": [["Step 1: so.\nFinal answer: red", "blue"]],
                "filter": "none",
            }
            for n in range(4)
        ]
        path.write_bytes(_spoiled_records(rng, logged))
        argv = ["from-lm-eval", "--samples", str(path), "--output", str(output)]
    elif kind == 1:
        path = folder / "spoiled.tsv"
        rows = ["index\tquestion\tanswer\tA\tB\timage_path\tcategory"]
        rows += [f"{n}\twhat is {n}?\tA\tred\tblue\timages/{n}.png\tsee" for n in range(3)]
        good = "\n".join(rows).encode()
        answers = b"index\tprediction\n0\tA\n1\tB\n2\tA\n"
        first, second = folder / "benchmark.tsv", folder / "predictions.tsv"
        first.write_bytes(good)
        second.write_bytes(answers)
        path = rng.choice([first, second])
        path.write_bytes(spoil_bytes(rng, path.read_bytes()))
        argv = ["from-vlmevalkit", "--benchmark", str(first), "--predictions", str(second)]
        argv += ["--image_dir", str(folder / "images"), "--output", str(output)]
    else:
        samples = next(shop.chosen.rglob("samples.jsonl"))
        path.write_bytes(spoil_bytes(rng, samples.read_bytes()))
        back = rng.choice(["to-vlmevalkit", "to-lm-eval"])
        argv = [back, "--samples", str(path), "--output", str(output)]
    return Case(lambda: exchange.main(argv), ("spoiled", "benchmark", "predictions", "images"))


def servers(rng: random.Random, shop: Workshop, folder: Path) -> Case:
    """The answers of a server, or the journal: ``reweighting.rollouts chains``."""
    from reweighting.rollouts import __main__ as rollouts

    if shop.server is None:
        shop.server = ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
        shop.server.shop = shop
        threading.Thread(target=shop.server.serve_forever, daemon=True).start()
    text = "Step 1: it is seen.\nStep 2: so it is red.\nFinal answer: red"
    message = {"role": "assistant", "content": text}
    good = {
        "id": "1",
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 9},
    }
    shop.answers.clear()
    for _ in range(3):
        if rng.random() < 0.7:
            shop.answers.append(to_bytes(rng, spoil_value(rng, good)))
        else:
            shop.answers.append(spoil_bytes(rng, to_bytes(rng, good)))
    path = folder / "questions.json"
    path.write_text(json.dumps(shop.asked))
    journal = folder / "journal.jsonl"
    if rng.random() < 0.2:
        line = {"key": "a", "text": "x\u2028y", "finish_reason": "stop"}
        line |= {"tokens_in": 1, "tokens_out": 1}
        journal.write_bytes(spoil_bytes(rng, to_bytes(rng, [line] * 3, lines=True)))
    url = f"http://127.0.0.1:{shop.server.server_address[1]}/v1"
    argv = [
        *("chains", "--questions", str(path), "--output", str(folder / "chains.json")),
        *("--image_root", str(shop.data), "--model", "m", "--base_url", url, "--samples", "2"),
        *("--max_retries", "0", "--timeout", "5", "--journal", str(journal)),
    ]
    return Case(lambda: rollouts.main(argv), (), (0, 1, 2))


class _Answers(BaseHTTPRequestHandler):
    """Gives the answers of the case in turn."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answers = self.server.shop.answers
        body = answers[hash(self.client_address) % len(answers)] if answers else b"{}"
        with contextlib.suppress(ConnectionError):
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *args) -> None:
        pass


def texts(rng: random.Random, shop: Workshop, folder: Path) -> Case:
    """Texts that are no file's: steps, answers, scores from Python."""
    from reweighting.records.answers.comparison import same
    from reweighting.records.answers.extraction import extract
    from reweighting.records.steps import chain_prompts, split_question

    parts = [as_text(odd(rng))[:5000] for _ in range(rng.randrange(1, 6))]
    text = rng.choice(["\n", " ", "\n\n", ""]).join(parts)
    other = as_text(odd(rng))[:300]

    def run() -> int:
        split_question(text)
        chain_prompts("Question: what?", text)
        answer = extract(text)
        for left, right in ((answer, other), (other, answer), (text[:300], other)):
            same(left, right, ["red", "blue"])
        return 0

    return Case(run, ())


TARGETS: dict[str, Callable[[random.Random, Workshop, Path], Case]] = {
    target.__name__: target
    for target in (records, candidates, images, checkpoints, results, exchange, servers, texts)
}


class Hang(BaseException):
    """A case took too long; not an Exception, so that no handler swallows it."""


def fault(case: Case) -> tuple[str | None, int | None, str]:
    """Run a case; says what is wrong with its outcome, its exit code and what it printed."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict", write_through=True)
    err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict", write_through=True)
    code = wrong = None

    def ring(number, frame):
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    _reset_peak()
    memory, started = _peak_megabytes(), time.process_time()
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    # A thread that hangs can keep the process; then this ends it and says where it is.
    faulthandler.dump_traceback_later(2 * SECONDS, exit=True, file=sys.__stderr__)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = case.run()
    except SystemExit as error:
        code = error.code
    except Hang:
        wrong = f"hangs: {traceback.format_exc(limit=-3)}"
    except BaseException:
        wrong = traceback.format_exc(limit=-4)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)
    seconds, grown = time.process_time() - started, _peak_megabytes() - memory
    printed = (out.buffer.getvalue() + err.buffer.getvalue()).decode("utf-8", "replace")
    said = err.buffer.getvalue().decode("utf-8", "replace")
    if wrong is None:
        wrong = _complaint(case, code, printed, said, seconds, grown)
    return wrong, code, printed


def _complaint(
    case: Case, code: int | None, printed: str, said: str, seconds: float, grown: float
) -> str | None:
    if "Traceback" in printed:
        return f"prints a traceback:\n{printed[-1500:]}"
    if match := re.search(r"\w*Warning: .*", printed):
        return f"prints a Python warning: {match.group()[:300]}"
    if code not in case.codes:
        return f"exit code {code}:\n{printed[-800:]}"
    if code == 2:
        if not re.search(r"^([\w. ]+: )?error: ", said, re.MULTILINE):
            return f"exit code 2 and no error:\n{said[-800:]}"
        if case.named and not any(name in said for name in case.named):
            return f"the error names no file: {said[:600]}"
    odd_ones = {c for c in printed if not c.isprintable() and c not in "\n\r"}
    if odd_ones:
        return f"prints {sorted(odd_ones)!r}: {printed[-600:]!r}"
    if seconds > CPU_SECONDS:
        return f"takes {seconds:.1f} s of CPU time"
    if grown > MEGABYTES:
        return f"takes {grown:.0f} MB"
    return None


def _reset_peak() -> None:
    with contextlib.suppress(OSError):  # Linux; elsewhere the peak is that of the whole process
        Path("/proc/self/clear_refs").write_text("5")


def _peak_megabytes() -> float:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    return 0.0


def run(
    cases: int, seed: int = 1, only: list[str] | None = None, first: int = 0, show: bool = False
) -> list[str]:
    """Run cases number ``first`` and on, targets in turn; returns what is wrong, a text a case."""
    names = only or list(TARGETS)
    faults: list[str] = []
    codes: dict[str, Counter] = {name: Counter() for name in names}
    with tempfile.TemporaryDirectory() as folder:
        shop = Workshop(Path(folder))
        for number in range(first, first + cases):
            name = names[number % len(names)]
            rng = random.Random(f"{seed} {name} {number // len(names)}")
            place = Path(folder) / f"case{number}"
            place.mkdir()
            case = TARGETS[name](rng, shop, place)
            wrong, code, printed = fault(case)
            codes[name]["fault" if wrong else "result" if code == 0 else "error"] += 1
            if show:
                print(f"{name} {number}: exit code {code}\n{printed}")
            if wrong:
                faults.append(f"case {number} ({name}, seed {seed}): {wrong}")
                print(faults[-1], file=sys.stderr, flush=True)
            shutil.rmtree(place, ignore_errors=True)
        if shop.server:
            shop.server.shutdown()
    print(f"{'':<12}{'results':>9}{'errors':>9}{'faults':>9}")
    for name, found in codes.items():
        print(f"{name:<12}{found['result']:>9}{found['error']:>9}{found['fault']:>9}")
    return faults


def main() -> int:
    """Command line; returns 1 where a case failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=list(TARGETS))
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--show", action="store_true", help="print what every case prints")
    arguments = parser.parse_args()
    faults = run(arguments.cases, arguments.seed, arguments.only, arguments.first, arguments.show)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
