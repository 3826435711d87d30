"""The learned weights of domains and records as files, written for programs and for people."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from ..files import is_number, write_json
from ..terminal import printable
from .finding import (
    AVERAGE_JSON,
    DOMAIN_FILE,
    DOMAIN_JSON,
    INSTANCE_FILE,
    INSTANCE_PARQUET,
    CheckpointError,
    locate,
)
from .opening import load_object, load_tensors


def save_domain_weights(folder: Path, weighting, average: list[float] | None = None) -> None:
    """Write the domain weights for programs and for people, and their ``average`` if known."""
    state = {"module": weighting.state_dict(), "domains": weighting.domains}
    torch.save(state, folder / DOMAIN_FILE)
    tables = {DOMAIN_JSON: weighting.named_weights()}
    if average is not None:
        tables[AVERAGE_JSON] = dict(zip(weighting.domains, average, strict=True))
    for name, weights in tables.items():
        write_json(folder / name, weights)


def save_instance_weights(folder: Path, weighting, samples, records) -> None:
    """Write the instance table or net, and every record's weight and visits for other tools.

    Args:
        samples: the :class:`~reweighting.records.tables.TrainRecords`.
        records: their :class:`~reweighting.training.monitors.InstanceMonitor`; the weight written
            is the last one a record was trained with, null if it never was.
    """
    import pyarrow
    from pyarrow import parquet

    torch.save({"module": weighting.state_dict()}, folder / INSTANCE_FILE)
    rows = torch.from_numpy(samples.numbers) - 1
    weights = records.last[rows].numpy()
    table = {
        "id": samples.texts("id"),
        "record": pyarrow.array((rows + 1).numpy()),
        "domain": samples.texts("domain"),
        "weight": pyarrow.array(weights, mask=weights != weights),
        "visits": pyarrow.array(records.visits[rows].numpy()),
    }
    parquet.write_table(pyarrow.table(table), folder / INSTANCE_PARQUET)


def read_named_weights(path: Path) -> dict[str, float]:
    """Domain weights ``{domain: weight}`` from a ``domain_weights.json``.

    Raises:
        CheckpointError: it is damaged, or holds anything but finite numbers of at least 0.
    """
    weights = load_object(path)
    for name, weight in weights.items():
        if not is_number(weight) or weight < 0:
            raise CheckpointError(
                f"{path}: the weight of '{printable(name)}' must be a number of at least 0"
            )
    if not any(weights.values()):
        raise CheckpointError(f"{path}: holds no weight above 0")
    return weights


def domain_file(path: str | Path) -> Path:
    """The file of domain weights: ``path`` itself, or the one in a run's or published folder."""
    path = Path(path)
    return locate(path) / DOMAIN_FILE if path.is_dir() else path


def names_domains(path: Path) -> bool:
    """Whether a file of domain weights names the domains."""
    return _is_table(path) or "domains" in load_tensors(path)


def _is_table(path: Path) -> bool:
    return path.suffix == ".json"


def load_domain_weights(path: Path, domains: list[str]) -> torch.Tensor:
    """Raw weights ``[K]`` for ``domains`` from a file of domain weights.

    A ``domain_weights.pt`` of ours and a ``domain_weights.json`` name their domains and are matched
    by name; domains they do not name start at 0. The published ``domain_weights.pt`` holds a bare
    vector in the order in which the train file first mentions the domains, and must have as many
    entries.

    Raises:
        CheckpointError: the file does not fit.
    """
    if _is_table(path):
        return _matched(_raw_weights(read_named_weights(path)), domains, path)
    state = load_tensors(path)
    module = state.get("module", state)
    raw = module.get("raw_weights") if isinstance(module, dict) else None
    if not isinstance(raw, torch.Tensor):
        raise CheckpointError(f"{path}: holds no 'raw_weights'")
    if raw.ndim != 1 or not raw.is_floating_point() or not raw.isfinite().all():
        raise CheckpointError(f"{path}: 'raw_weights' must be a list of finite numbers")
    if "domains" in state:
        names = state["domains"]
        if not isinstance(names, list) or len(names) != len(raw):
            raise CheckpointError(f"{path}: holds {len(raw)} weights, but not as many names")
        return _matched(dict(zip(names, raw.tolist(), strict=True)), domains, path)
    if len(raw) != len(domains):
        raise CheckpointError(
            f"{path}: holds {len(raw)} weights without names, the train file has "
            f"{len(domains)} domains"
        )
    return raw.float()


def _raw_weights(weights: dict[str, float]) -> dict[str, float]:
    """The raw weights that give ``weights``; that of the average weight is 0."""
    values = torch.tensor(list(weights.values()), dtype=torch.float64)
    positive = values / values.mean() * math.log(2)  # softplus(0) = log 2
    positive = positive.clamp(min=1e-30)  # a weight of 0 has no raw one
    raw = positive + (-torch.expm1(-positive)).log()  # the inverse of softplus
    return dict(zip(weights, raw.tolist(), strict=True))


def _matched(raw: dict[str, float], domains: list[str], path: Path) -> torch.Tensor:
    if not raw.keys() & set(domains):
        raise CheckpointError(f"{path}: holds none of the train file's domains")
    return torch.tensor([raw.get(domain, 0.0) for domain in domains])
