"""Correctness, speed and memory on a GPU, part by part, against the bars of this project.

    make gpu                                   # or: python -m benchmarks.gpu
    python -m benchmarks.gpu --parts card 2b   # some of the parts
    python -m benchmarks.gpu --rehearse        # all of them on the CPU, with a tiny model

Every part runs in a process of its own and writes its figures at once, with card, driver and
versions, to a folder of that day. A part that is there already is not run again. Models have
random weights, so nothing is downloaded. At the end a table says which bars are met.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from multiprocessing.context import BaseContext
from pathlib import Path

from benchmarks.gpu.parts import PARTS, cannot_use_cuda, run_part
from benchmarks.gpu.report import report
from reweighting.system.files import write_text

REPOSITORY = Path(__file__).resolve().parents[2]
LIMIT = 240  # seconds that a part may take


def _context() -> BaseContext:
    """Processes that share their imports, unless an import has touched the GPU."""
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # asks the driver and does not touch it
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.gpu.parts"])
    probe = context.Process(target=cannot_use_cuda)
    probe.start()
    probe.join()
    return multiprocessing.get_context("spawn") if probe.exitcode else context


def main() -> int:
    """Command line; 1 if a part failed or a bar was missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    add("--out", type=Path, help="default: a folder of today in benchmarks/results")
    add("--cycles", type=int, default=10, help="measured of every run (default: 10)")
    add("--rehearse", action="store_true", help="a tiny model on the CPU")
    arguments = parser.parse_args()
    arguments.device = "cpu" if arguments.rehearse else "cuda"
    if arguments.out is None:
        folder = "rehearsal" if arguments.rehearse else f"{time.strftime('%Y-%m-%d')}-gpu"
        arguments.out = REPOSITORY / "benchmarks" / "results" / folder
    arguments.out.mkdir(parents=True, exist_ok=True)
    context = _context()
    for name in arguments.parts:
        path = arguments.out / f"{name}.json"
        if path.exists() and "error" not in json.loads(path.read_text())["figures"]:
            print(f"{name}: done before", flush=True)
            continue
        started = time.monotonic()
        process = context.Process(target=run_part, args=(name, arguments))
        process.start()
        process.join(LIMIT)
        if process.is_alive():
            process.kill()
            process.join()
            print(f"{name}: stopped after {LIMIT} s", flush=True)
        print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
    text, met = report(arguments.out)
    write_text(arguments.out / "report.md", text)
    print(text)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
