"""One table of all bars from the files of the parts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from benchmarks.bilevel import STEP_TOKENS, UNROLL

CHAINS = 8  # of a step of the run with chains
RUNS = (
    "2b", "2b-compile", "2b-8-chains", "2b-8-chains-compile", "2b-adamw-8bit", "2b-lora",
    "7b-adamw-8bit",
)  # fmt: skip
# Bytes that a parameter's number moves at least, in fp32: AdamW reads φ, g, m, v and writes φ, m,
# v; the pull-back reads g, m, v and the meta gradient and writes u; φ is recovered from φ', m, v.
ADAMW_BYTES, UPPER_BYTES = 28, 20 + 16


@dataclass
class Bar:
    """One bar; ``found`` is None for a part that was not run."""

    what: str
    bar: str
    found: str | None = None
    met: bool = False

    def row(self) -> str:
        verdict = "not run" if self.found is None else "met" if self.met else "**missed**"
        return f"| {self.what} | {self.bar} | {self.found or ''} | {verdict} |"


class Figures:
    """The figures of all parts, by part and name; missing ones raise KeyError."""

    def __init__(self, folder: Path) -> None:
        self.parts = {
            path.stem: json.loads(path.read_text(encoding="utf-8"))
            for path in sorted(folder.glob("*.json"))
        }

    def __call__(self, part: str, name: str) -> float:
        return self.parts[part]["figures"][name]


def at_most(what: str, limit: float, unit: str, value) -> Bar:
    return _bar(what, f"at most {limit:g} {unit}", unit, value, lambda found: found <= limit)


def at_least(what: str, limit: float, unit: str, value) -> Bar:
    return _bar(what, f"at least {limit:g} {unit}", unit, value, lambda found: found >= limit)


def _bar(what: str, bar: str, unit: str, value, meets) -> Bar:
    try:
        found = value()
    except (KeyError, ZeroDivisionError):
        return Bar(what, bar)
    return Bar(what, bar, f"{found:.4g} {unit}", meets(found))


def bars(of: Figures) -> list[Bar]:
    """All bars of the issue, in its order."""
    records = CHAINS * len(STEP_TOKENS)

    def faster_by_record(run: str) -> float:
        theirs = UNROLL * of("published", "lower_ms") + of("published", "upper_ms")
        return theirs / (UNROLL * of(run, "lower_ms") / records + of(run, "upper_ms") / CHAINS)

    def passed() -> float:
        missed = sum(of("correctness", kind) for kind in ("failures", "errors", "skipped"))
        return 100 * (1 - missed / of("correctness", "tests"))

    return [
        at_least("tests on CUDA that pass", 100, "%", passed),
        at_most("2B, full fine-tuning, peak", 48, "GiB", lambda: of("2b", "peak_gib")),
        at_most("2B, `adamw_8bit`, peak", 24, "GiB", lambda: of("2b-adamw-8bit", "peak_gib")),
        at_most("2B, LoRA 16, peak", 24, "GiB", lambda: of("2b-lora", "peak_gib")),
        at_most("7B, `adamw_8bit`, peak", 80, "GiB", lambda: of("7b-adamw-8bit", "peak_gib")),
        *(
            at_most(f"{run}: estimate off by", 10, "%", lambda run=run: 100 * abs(
                of("estimates", run) / of(run, "peak_gib") - 1))
            for run in RUNS
            if "compile" not in run
        ),
        *(
            at_least(f"{run}: a cycle, batch 1/1, against the published way", 2, "x",
                     lambda run=run: of("published", "cycle_ms") / of(run, "cycle_ms"))
            for run in ("2b", "2b-compile")
        ),
        *(
            at_least(f"{run}: a record, against it", 5, "x", lambda run=run: faster_by_record(run))
            for run in ("2b-8-chains", "2b-8-chains-compile")
        ),
        *(
            at_least(f"{run}: lower step, share of the card's matmul rate", 40, "%",
                     lambda run=run: 100 * of("2b-8-chains", "lower_tflop") * 1e3
                     / of(run, "lower_ms") / of("card", "matmul_tflops"))
            for run in ("2b-8-chains", "2b-8-chains-compile")
        ),
        *(
            at_most(f"{run}: the GPU is idle", 5, "%",
                    lambda run=run: 100 * of(run, "trace")["idle"])
            for run in ("2b-8-chains", "2b-8-chains-compile")
        ),
    ]  # fmt: skip


def steps(of: Figures) -> list[str]:
    """A table of what every step takes, and its floor."""
    rows = [
        "| run | lower step, ms | floor | upper step, ms | floor | cycle, ms | waits a cycle | "
        "kernels a cycle | idle | waiting for data |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for run in ("published", *RUNS):
        try:
            cells = [run, f"{of(run, 'lower_ms'):.1f}"]
        except KeyError:
            continue
        lower, upper = (floor(of, run, step) for step in ("lower", "upper"))
        cells += [lower, f"{of(run, 'upper_ms'):.1f}", upper, f"{of(run, 'cycle_ms'):.1f}"]
        try:
            trace, waits = of(run, "trace"), sum(of(run, "waits").values())
            cells += [f"{waits}", f"{trace['kernels']:,}", f"{100 * trace['idle']:.1f} %"]
            cells += [f"{100 * of(run, 'waiting'):.1f} %"]
        except KeyError:
            cells += [""] * 4
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def floor(of: Figures, run: str, step: str) -> str:
    """Arithmetic at the card's rate, then the optimizer's memory traffic, in ms."""
    run = run.removesuffix("-compile")
    try:
        arithmetic = 1e3 * of(run, f"{step}_tflop") / of("card", "matmul_tflops")
        each = ADAMW_BYTES if step == "lower" else UPPER_BYTES
        each = each if "8bit" not in run else each * 10 / 28  # bf16 and 8-bit numbers
        moved = 1e3 * each * of(run, "trained") / (of("card", "copy_tb_per_s") * 1e12)
    except KeyError:
        return ""
    return f"{arithmetic + moved:.1f} ({arithmetic:.1f} + {moved:.1f})"


def report(folder: Path) -> tuple[str, bool]:
    """The report as Markdown, and whether every bar was met."""
    of = Figures(folder)
    kept = next((part for name, part in of.parts.items() if name != "estimates"), {})
    found = bars(of)
    lines = ["# On a GPU", ""]
    lines += [", ".join(f"{k} {v}" for k, v in kept.items() if k not in ("seconds", "figures"))]
    lines += ["", "| what | bar | measured | |", "|---|---|---|---|"]
    lines += [bar.row() for bar in found]
    lines += ["", *steps(of), ""]
    for run in RUNS:
        if run in of.parts and "trace" in of.parts[run]["figures"]:
            shares = of(run, "trace")["families"].items()
            lines += [f"- {run}: " + ", ".join(f"{name} {100 * s:.0f} %" for name, s in shares)]
    for name, part in of.parts.items():
        lines += [f"- `{name}` ({part['seconds']} s): {json.dumps(part['figures'])}"]
    return "\n".join(lines) + "\n", all(bar.met for bar in found)
