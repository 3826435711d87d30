"""Checkpoints that a kill cannot tear, in the published layout.

    DIR/base_model/          Hugging Face checkpoint with the processor, fp32 master weights
    DIR/LN_weights.pt        the linear reward head
    DIR/score_head.json      which head it is, and how prompts are made
    DIR/domain_weights.pt    raw domain weights, in their published form, and the domains' names
    DIR/domain_weights.json  {domain: weight}, for people
    DIR/domain_weights_average.json  the same, averaged over the last quarter of the upper steps
    DIR/instance_weights.parquet     id, record, domain, weight, visits (instance reweighting)
    DIR/instance_weights.pt          the instance table or net
    DIR/trainer_state.pt     everything else ``--resume`` needs
    DIR/arguments.json       the arguments of the run
    DIR/metrics.jsonl        one line every ``--logging_steps`` (not part of the checkpoint)

The names are links into ``DIR/checkpoint`` and that is a link to ``DIR/checkpoints/step-N``: a
checkpoint is written aside, forced to disk and then takes effect as a whole, by the renaming of
one link.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from .reward_model import BASE_DIRECTORY, HEAD_FILE

DOMAIN_FILE = "domain_weights.pt"
DOMAIN_JSON = "domain_weights.json"
AVERAGE_JSON = "domain_weights_average.json"
ARGUMENTS_FILE = "arguments.json"
INSTANCE_FILE = "instance_weights.pt"
INSTANCE_PARQUET = "instance_weights.parquet"
STATE_FILE = "trainer_state.pt"
METRICS_FILE = "metrics.jsonl"
_CURRENT = "checkpoint"
_STEPS = "checkpoints"


def save(directory: Path, iteration: int, write: Callable[[Path], None]) -> None:
    """Make what ``write(folder)`` writes the current checkpoint of ``directory``.

    Args:
        directory: the run's ``--weights_path``.
        iteration: lower steps done.
        write: writes all files of the checkpoint into an empty folder.
    """
    steps = directory / _STEPS
    steps.mkdir(parents=True, exist_ok=True)
    name = f"step-{iteration:08d}"
    unfinished = steps / f"{name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    write(unfinished)
    _sync(unfinished)
    link = directory / _CURRENT
    if link.is_symlink() and os.readlink(link) == f"{_STEPS}/{name}":
        shutil.rmtree(unfinished)  # a finished run was resumed: this step is already saved
    else:
        # Left by a run killed before the link was set; nothing points to it.
        shutil.rmtree(steps / name, ignore_errors=True)
        unfinished.rename(steps / name)
        _sync_directory(steps)
        _link(link, f"{_STEPS}/{name}")
    for path in (steps / name).iterdir():
        if not (directory / path.name).is_symlink():
            _link(directory / path.name, f"{_CURRENT}/{path.name}")
    _sync_directory(directory)
    for other in steps.iterdir():
        if other.name != name:
            shutil.rmtree(other)


def current(directory: Path) -> Path:
    """The folder of the current checkpoint."""
    return directory / _CURRENT


def exists(directory: Path) -> bool:
    """Whether ``directory`` holds a complete checkpoint of ours."""
    return (directory / _CURRENT / STATE_FILE).is_file()


def occupied(directory: Path) -> bool:
    """Whether ``directory`` holds a reward model, ours or one in the published layout."""
    return exists(directory) or any(
        (directory / name).exists() for name in (BASE_DIRECTORY, HEAD_FILE, DOMAIN_FILE)
    )


def load_state(directory: Path) -> dict:
    """The trainer's state of the current checkpoint, tensors on the CPU."""
    return torch.load(directory / _CURRENT / STATE_FILE, map_location="cpu", weights_only=True)


def load_arguments(directory: Path) -> dict:
    """The arguments of the run that wrote the current checkpoint."""
    return json.loads((directory / _CURRENT / ARGUMENTS_FILE).read_text())


def save_domain_weights(folder: Path, weighting, average: list[float] | None = None) -> None:
    """Write the domain weights for machines and for people, and their ``average`` if known."""
    state = {"module": weighting.state_dict(), "domains": weighting.domains}
    torch.save(state, folder / DOMAIN_FILE)
    tables = {DOMAIN_JSON: weighting.named_weights()}
    if average is not None:
        tables[AVERAGE_JSON] = dict(zip(weighting.domains, average, strict=True))
    for name, weights in tables.items():
        text = json.dumps(weights, indent=2, ensure_ascii=False)
        (folder / name).write_text(text + "\n")


def save_instance_weights(folder: Path, weighting, samples, records) -> None:
    """Write the instance table or net, and every record's weight and visits for other tools.

    Args:
        samples: the train samples.
        records: their :class:`~reweighting.diagnostics.RecordWeights`; a weight is the last one a
            record was trained with, null if it never was.
    """
    import pyarrow
    from pyarrow import parquet

    torch.save({"module": weighting.state_dict()}, folder / INSTANCE_FILE)
    rows = torch.tensor([sample.record for sample in samples]) - 1
    weights = records.last[rows].numpy()
    table = {
        "id": [sample.id for sample in samples],
        "record": pyarrow.array((rows + 1).numpy()),
        "domain": pyarrow.array([sample.domain for sample in samples]).dictionary_encode(),
        "weight": pyarrow.array(weights, mask=weights != weights),
        "visits": pyarrow.array(records.visits[rows].numpy()),
    }
    parquet.write_table(pyarrow.table(table), folder / INSTANCE_PARQUET)


def load_domain_weights(path: Path, domains: list[str]) -> torch.Tensor:
    """Raw weights for ``domains`` from a ``domain_weights.pt``, ours or the published one.

    Ours names its domains and is matched by name, unknown domains starting at 0. The published
    file holds a bare vector in the order of first appearance, which must have as many entries.

    Raises:
        ValueError: the file does not fit.
    """
    state = torch.load(path, map_location="cpu", weights_only=True)
    raw = state.get("module", state).get("raw_weights")
    if raw is None:
        raise ValueError(f"{path}: holds no 'raw_weights'")
    if "domains" in state:
        known = dict(zip(state["domains"], raw.tolist(), strict=True))
        return torch.tensor([known.get(domain, 0.0) for domain in domains])
    if len(raw) != len(domains):
        raise ValueError(
            f"{path}: holds {len(raw)} weights without names, the train file has "
            f"{len(domains)} domains"
        )
    return raw.float()


def truncate_metrics(directory: Path, iteration: int) -> None:
    """Drop the lines of ``metrics.jsonl`` that a resumed run will write again, or cut short."""
    path = directory / METRICS_FILE
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["iteration"] <= iteration:
                kept.append(line + "\n")
        except json.JSONDecodeError:
            break
    aside = path.with_suffix(".unfinished")
    aside.write_text("".join(kept))
    aside.replace(path)


def _link(link: Path, target: str) -> None:
    """Point ``link`` to ``target``, replacing what it pointed to in one instant."""
    aside = link.with_name(link.name + ".unfinished")
    aside.unlink(missing_ok=True)
    aside.symlink_to(target)
    aside.replace(link)


def _sync(folder: Path) -> None:
    for root, _, files in os.walk(folder):
        for file in files:
            with open(os.path.join(root, file), "rb") as handle:
                os.fsync(handle.fileno())
        _sync_directory(Path(root))


def _sync_directory(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
