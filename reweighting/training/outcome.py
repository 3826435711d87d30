"""What a run says at its end: where it stands, what the domains weigh, and what to think of it."""

from __future__ import annotations

from pathlib import Path

from ..bilevel.problems import ONE_WEIGHT_CLIPPED, Upper
from ..system.terminal import printable
from .monitors import DomainMonitor, InstanceMonitor
from .progress import Progress
from .statistics import ENOUGH_STEPS, base_rates
from .validation import BEST_DIRECTORY, Validation


def outcome(
    progress: Progress,
    directory: Path,
    upper: Upper | None,
    monitor: DomainMonitor | InstanceMonitor | None,
    validation: Validation,
    candidates: str | None,
    steps: str | None,
) -> str:
    """The lines that end a run.

    Args:
        directory: of the run.
        upper, monitor: None without reweighting.
        candidates, steps: the files of the validation set, as far as there are any.
    """
    lines = [f"{progress.iteration:,} of {progress.total:,} lower steps done, saved in {directory}"]
    if upper is not None:
        lines += ["", *_weight_table(monitor), *_doubts(progress, upper, monitor)]
    if best := validation.best:
        last, place = validation.history[-1], directory / BEST_DIRECTORY
        lines += ["", f"best checkpoint after {best['iteration']:,} steps, kept in {place}"]
        if "accuracy" in best and "accuracy" in last:
            lines += [
                f"best of N on {candidates}: {100 * best['accuracy']:.1f} % there; "
                f"last {100 * last['accuracy']:.1f} %"
                + (f"; {validation.note}" if validation.note else "")
            ]
        if "steps" in best and "steps" in last:
            there, now = best["steps"], last["steps"]
            lines += [
                f"steps of {steps}: AUROC {there['auroc']:.3f} and macro-F1 "
                f"{100 * there['macro_f1']:.1f} % there; last {now['auroc']:.3f} and "
                f"{100 * now['macro_f1']:.1f} %"
            ]
    return "\n".join(lines)


def _weight_table(monitor: DomainMonitor | InstanceMonitor) -> list[str]:
    data, history = monitor.data, monitor.history
    records = data.train.named("domain")
    weights = monitor.by_domain()
    lines = [f"{'domain':<24}{'records':>8}{'weight':>9}"]
    if len(history):
        lines[0] += f"{'average':>9}{'signal/noise':>14}"
        average, ratio = history.average(), history.signal_to_noise()
    for domain in sorted(weights, key=weights.get, reverse=True):
        lines.append(f"{printable(domain):<24}{records[domain]:>8,}{weights[domain]:>9.3f}")
        if len(history):
            index = data.domains.index(domain)
            known = "-" if ratio[index].isnan() else f"{ratio[index]:.1f}"
            lines[-1] += f"{average[index]:>9.3f}{known:>14}"
    if len(history):
        about = (
            f"of the last {history.looked_back} hypergradients, below 2 is what chance gives"
            if history.looked_back >= ENOUGH_STEPS
            else f"not before {ENOUGH_STEPS} upper steps"
        )
        lines.append(f"average: over the last quarter of the upper steps; signal/noise: {about}")
        if ranking := history.ranking():
            needed = (
                "cannot be told from noise"
                if ranking.steps is None
                else f"takes about {counted(ranking.steps, 'upper step')} at these batch sizes"
            )
            lines.append(
                f"ranking the domains {needed}, by the last {history.looked_back} hypergradients; "
                f"the run took {counted(len(history), 'upper step')}"
            )
    return lines


def _doubts(
    progress: Progress, upper: Upper, monitor: DomainMonitor | InstanceMonitor
) -> list[str]:
    """Reasons not to trust the weights."""
    lines = []
    skipped = sum(count for why, count in upper.lost.items() if why != ONE_WEIGHT_CLIPPED)
    taken = progress.upper_steps - skipped
    if taken < ENOUGH_STEPS:
        lines.append(
            f"weights after {counted(taken, 'upper step')} are not learned yet: "
            f"fewer than {ENOUGH_STEPS} cannot be told from noise"
        )
    compared = monitor.meta_losses.compared()
    if compared is not None and compared.at_chance:
        what = "questions" if upper.loss == "rank" else "chains"
        lines.append(
            "the meta loss is at chance: these weights mean nothing. Over the last "
            f"{compared.chains:,} meta {what} it is {compared.loss:.4f}, and one score for all "
            f"has {compared.constant:.4f}"
        )
    if told := base_rates(monitor.data, upper.loss):
        lines.append(f"base rates: {told}")
    for reason, count in upper.lost.items():
        steps = f"{count:,} of {counted(progress.upper_steps, 'upper step')}"
        what = "taught nothing" if reason == ONE_WEIGHT_CLIPPED else "skipped"
        lines.append(f"{steps} {what}: {reason}")
    return lines


def counted(count: int, what: str) -> str:
    """``1 upper step``, ``2 upper steps``."""
    return f"{count:,} {what}" + "s" * (count != 1)
