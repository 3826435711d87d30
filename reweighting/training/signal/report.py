"""What was measured, for people and for programs."""

from __future__ import annotations

import math

from ...system.terminal import printable
from .estimates import Estimate
from .sampling import DomainSample

FOLLOWS, FREE = 0.5, 0.2  # |R²| above and below which the verdict speaks of mean labels
AGREES = 0.5  # split-half agreement below which nothing is ranked
LOSSES = ("published", "ranking")  # the columns


def table(domains: list[DomainSample], found: dict[str, Estimate]) -> list[str]:
    """The lines of one moment: the domains, then what is said of each loss."""
    lines = [f"{'domain':<24}{'records':>9}{'label':>7}"]
    lines[0] += "".join(f"{name + ' loss':>19}" for name in found)
    first = next(iter(found.values()))
    for d in first.raw.argsort(descending=True).tolist():
        domain = domains[d]
        line = f"{printable(domain.name):<24}{domain.records:>9,}{domain.label:>7.2f}"
        for estimate in found.values():
            line += f"{estimate.pull[d]:>11.2f} ± {estimate.pull_error[d]:<5.2f}"
        lines.append(line.rstrip())
    lines.append("")
    rows = {
        "agreement of halves, Spearman": lambda e: _number(e.agreement),
        "with mean labels, Spearman": lambda e: _number(e.with_label),
        "part that mean labels explain, R²": lambda e: _number(e.explained),
        "spread over noise of a step": lambda e: _number(e.ranking.of_a_step),
        "upper steps for the ranking": lambda e: _steps(e),
    }
    for name, value in rows.items():
        lines.append(f"{name:<40}" + "".join(f"{value(e):>19}" for e in found.values()))
    return lines


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _steps(estimate: Estimate) -> str:
    return "no spread seen" if estimate.ranking.steps is None else f"{estimate.ranking.steps:,}"


def verdict(found: dict[str, Estimate], upper_steps: int) -> list[str]:
    """A sentence or two about each loss. No domain's quality is known here, so none is claimed.

    Args:
        upper_steps: of the run that the flags describe.
    """
    lines = []
    for name, e in found.items():
        if e.ranking.steps is None or not e.agreement >= AGREES:
            lines.append(
                f"this sample is too small to rank the domains by the {name} loss (halves agree to "
                f"{_number(e.agreement)}; R² of mean labels {_number(e.explained)})"
            )
            continue
        share = f"(R² {e.explained:.2f})"
        if abs(e.explained) >= FOLLOWS:
            order = "" if e.explained > 0 else ", low labels first"
            said = f"the {name} loss ranks the domains by their mean labels {share}{order}"
        elif abs(e.explained) <= FREE:
            said = f"the {name} loss does not rank the domains by their mean labels {share}"
        else:
            said = f"mean labels explain a part of the {name} loss's ranking {share}"
        enough = "has" if upper_steps >= e.ranking.steps else "has only"
        lines.append(
            f"{said}; its ranking needs about {e.ranking.steps:,} upper steps at these batch "
            f"sizes, and the run {enough} {upper_steps:,}"
        )
    if "published" in found and "ranking" not in found:
        lines.append("the ranking loss is not measured: too few questions have a pair")
    return lines


def as_json(domains: list[DomainSample], found: dict[str, Estimate]) -> dict:
    """The numbers of one moment; null for what is unknown."""
    return {
        "domains": [
            {
                "domain": domain.name,
                "records": domain.records,
                "sampled": len(domain.units),
                "mean_label": domain.label,
                **{
                    name: {
                        "derivative": float(e.raw[d]),
                        "standard_error": float(e.error[d]),
                        "pull": float(e.pull[d]),
                        "pull_error": float(e.pull_error[d]),
                    }
                    for name, e in found.items()
                },
            }
            for d, domain in enumerate(domains)
        ],
        "losses": {
            name: {
                "split_half_spearman": _known(e.agreement),
                "spearman_with_mean_label": _known(e.with_label),
                "r2_of_mean_label": _known(e.explained),
                "spread_over_noise_of_a_step": _known(e.ranking.of_a_step),
                "upper_steps_needed": e.ranking.steps,
            }
            for name, e in found.items()
        },
    }


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
