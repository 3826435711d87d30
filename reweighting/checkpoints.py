"""Checkpoints that neither a kill nor a copy can tear, in the published layout.

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
    DIR/checkpoint.json      run, step, and every file of the checkpoint with its size
    DIR/metrics.jsonl        one line every ``--logging_steps`` (not part of the checkpoint)

The names are links into ``DIR/checkpoint`` and that is a link to ``DIR/checkpoints/step-N``: a
checkpoint is written aside, forced to disk and then takes effect as a whole, by the renaming of
one folder. Reading never depends on the links (see :func:`find`): a copy may have lost them, may
hold copies in their place, or text files with their targets, as zip files and git make of them.
Such text files are also what is written where the file system has no links.

Everything that is read of a checkpoint is read here; what is damaged is named.
"""

from __future__ import annotations

import contextlib
import errno
import filecmp
import hashlib
import json
import math
import os
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging as transformers_logging

from .files import FileError, complete_lines, is_number, json_line, read_json, replacing, write_json
from .terminal import printable

BASE_DIRECTORY = "base_model"
HEAD_FILE = "LN_weights.pt"
SCORE_HEAD_FILE = "score_head.json"  # which head, and how prompts are made; linear without one
DOMAIN_FILE = "domain_weights.pt"
DOMAIN_JSON = "domain_weights.json"
AVERAGE_JSON = "domain_weights_average.json"
ARGUMENTS_FILE = "arguments.json"
INSTANCE_FILE = "instance_weights.pt"
INSTANCE_PARQUET = "instance_weights.parquet"
STATE_FILE = "trainer_state.pt"
MANIFEST_FILE = "checkpoint.json"
METRICS_FILE = "metrics.jsonl"
_CURRENT = "checkpoint"
_STEPS = "checkpoints"
_STEP_NAME = re.compile(r"step-\d{8,}")
_ASIDE = ".unfinished"
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
# What a checkpoint without a manifest must hold, as written before there were any.
_NEEDED = (STATE_FILE, ARGUMENTS_FILE, f"{BASE_DIRECTORY}/config.json")
_SHOWN = 3  # names in a message
_BLOCK, _BLOCKS = 4096, 4  # bytes and number of the blocks that stand for a tensor or an image
_COPY_AGAIN = "copy the file again from where it is whole, or use another checkpoint"


class CheckpointError(FileError, ValueError):
    """A checkpoint cannot be used; the message names the file and says what to do."""


# --- finding -----------------------------------------------------------------------------------


def survey(directory: Path) -> tuple[Path | None, list[str]]:
    """The folder of the newest complete checkpoint of a run, and what is wrong with newer ones.

    Args:
        directory: the run's ``--weights_path``, or a copy of it, with or without its links.
    """
    with _named(directory):
        steps = [p for p in _entries(directory / _STEPS) if _STEP_NAME.fullmatch(p.name)]
        steps.sort(key=lambda path: int(path.name.split("-")[1]), reverse=True)
        damaged = []
        for folder in [*steps, directory / _CURRENT, directory]:
            problem = _damage(folder)
            if problem is None:
                return folder, damaged
            if folder in steps:
                damaged.append(f"{folder}: {problem}")
    return None, damaged


def find(directory: Path) -> Path | None:
    """The folder of the newest complete checkpoint of a run, or of a copy of it, or None."""
    return survey(directory)[0]


def current(directory: Path) -> Path:
    """As :func:`find`.

    Raises:
        CheckpointError: there is no complete checkpoint.
    """
    folder, damaged = survey(directory)
    if folder is None:
        raise CheckpointError("; ".join([f"{directory}: holds no complete checkpoint", *damaged]))
    return folder


def exists(directory: Path) -> bool:
    """Whether ``directory`` holds a complete checkpoint of ours."""
    return find(directory) is not None


def occupied(directory: Path) -> bool:
    """Whether ``directory`` holds a reward model, ours or one in the published layout, or parts."""
    return any(_STEP_NAME.fullmatch(path.name) for path in _entries(directory / _STEPS)) or any(
        os.path.lexists(directory / name)
        for name in (BASE_DIRECTORY, HEAD_FILE, DOMAIN_FILE, STATE_FILE, _CURRENT)
    )


def locate(path: str | Path) -> Path:
    """Where a reward model's files are: the newest checkpoint of a run, or ``path`` itself."""
    path = Path(path)
    if (path / _STEPS).is_dir() or (path / _CURRENT).is_dir():
        if folder := find(path):
            return folder
        steps = sorted(_entries(path / _STEPS), reverse=True)  # copied without the trainer's state
        for folder in [path, *(p for p in steps if _STEP_NAME.fullmatch(p.name))]:
            if (folder / BASE_DIRECTORY).is_dir():
                return folder
    return path


def base_source(path: str | Path) -> str:
    """The base model of ``path``: a directory written by training, a checkpoint or a hub name."""
    base = locate(path) / BASE_DIRECTORY
    return str(base) if base.is_dir() else str(path)


def _damage(folder: Path) -> str | None:
    """What keeps a folder from being a complete checkpoint, or None."""
    manifest = folder / MANIFEST_FILE
    if not manifest.is_file():
        missing = next((name for name in _NEEDED if not (folder / name).is_file()), None)
        return f"{missing} is missing" if missing else None
    try:
        files = read_json(manifest)["files"]
        for name, size in files.items():
            found = (folder / name).stat().st_size
            if found != int(size):
                return f"{name} has {found:,} bytes instead of {int(size):,}"
    except (FileNotFoundError, NotADirectoryError):
        return f"{name} is missing"
    except (FileError, OSError, TypeError, ValueError, KeyError, AttributeError, OverflowError):
        return f"{MANIFEST_FILE} is damaged"
    return None


def run_of(folder: Path) -> str | None:
    """The name of the run that wrote a checkpoint; None before runs had names, or damaged."""
    try:
        return read_json(folder / MANIFEST_FILE)["run"]
    except (FileError, TypeError, KeyError):
        return None


# --- writing -----------------------------------------------------------------------------------


def save(
    directory: Path,
    iteration: int,
    write: Callable[[Path], None],
    run: str,
    loaded: Path | None = None,
) -> Path:
    """Make what ``write(folder)`` writes the current checkpoint of ``directory``.

    Nothing is deleted but earlier checkpoints of this run and what stands in the place of links to
    the checkpoint it went on from.

    Args:
        directory: the run's ``--weights_path``.
        iteration: lower steps done.
        write: writes all files of the checkpoint into an empty folder.
        run: a name of this run that no other run has; the same in its later parts.
        loaded: the checkpoint that this part of the run went on from.

    Returns:
        the checkpoint's folder.

    Raises:
        CheckpointError: it cannot be written; the one before is as it was.
    """
    steps = directory / _STEPS
    folder = steps / f"step-{iteration:08d}"
    unfinished = folder.with_name(folder.name + _ASIDE)
    try:
        if _damage(folder) is not None:  # else a finished run was resumed: it is already saved
            steps.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            write(unfinished)
            manifest = {"run": run, "iteration": iteration, "files": _sizes(unfinished)}
            write_json(unfinished / MANIFEST_FILE, manifest)
            _sync(unfinished)
            if folder.exists():  # damaged
                _clear(folder, delete=run_of(folder) == run)
            unfinished.rename(folder)
            _sync_directory(steps)
        _link(directory / _CURRENT, f"{_STEPS}/{folder.name}", loaded)
        for path in folder.iterdir():
            copied = loaded / path.name if loaded else None
            _link(directory / path.name, f"{_CURRENT}/{path.name}", copied)
        _sync_directory(directory)
    except (OSError, RuntimeError, SafetensorError, FileError) as error:
        # torch and safetensors raise errors of their own when a disk is full.
        shutil.rmtree(unfinished, ignore_errors=True)
        before = find(directory)
        kept = f"{before.resolve()} is as it was" if before else "there is no earlier one"
        raise CheckpointError(
            f"{directory}: the checkpoint of step {iteration:,} could not be written: "
            f"{_reason(error)}; {kept}"
        ) from error
    for other in _entries(steps):
        name, unfinished = other.name.removesuffix(_ASIDE), other.name.endswith(_ASIDE)
        if other == folder or not _STEP_NAME.fullmatch(name) or not other.is_dir():
            continue  # not made by training
        if unfinished or run_of(other) == run or (loaded is not None and other == loaded):
            shutil.rmtree(other, ignore_errors=True)
    return folder


def _link(link: Path, target: str, copied: Path | None) -> None:
    """Point ``link`` to ``target``, replacing what it pointed to in one instant.

    Args:
        copied: what ``link`` holds a copy of, if it is no link: copies are replaced, anything else
            is kept under another name.
    """
    if link.is_symlink() and os.readlink(link) == target:
        return
    aside = link.with_name(link.name + _ASIDE)
    aside.unlink(missing_ok=True)
    try:
        aside.symlink_to(target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        aside.write_text(target, encoding="utf-8")
    if os.path.lexists(link) and not link.is_symlink():
        if link.is_dir():
            _clear(link, delete=copied is not None and _same_folder(link, copied))
        elif not _is_link_text(link) and not (
            copied is not None and copied.is_file() and filecmp.cmp(link, copied, shallow=False)
        ):
            _clear(link, delete=False)
    aside.replace(link)


def _clear(path: Path, delete: bool) -> None:
    """Delete a folder, or keep it or a file under another name."""
    if delete:
        shutil.rmtree(path)
        return
    number = 1
    while os.path.lexists(kept := path.with_name(f"{path.name}.kept-{number}")):
        number += 1
    path.rename(kept)


def _is_link_text(path: Path) -> bool:
    """Whether a file holds the target of one of our links, as zip files and git keep links."""
    if path.stat().st_size > 200:
        return False
    return path.read_bytes().startswith((f"{_CURRENT}/".encode(), f"{_STEPS}/".encode()))


def _same_folder(left: Path, right: Path) -> bool:
    return left == right or (right.is_dir() and _sizes(left) == _sizes(right))


def _sizes(folder: Path) -> dict[str, int]:
    """Every file of a folder and its size in bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _sync(folder: Path) -> None:
    for root, _, files in os.walk(folder):
        for file in files:
            with open(os.path.join(root, file), "rb") as handle:
                os.fsync(handle.fileno())
        _sync_directory(Path(root))


def _sync_directory(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- opening -----------------------------------------------------------------------------------


def load_tensors(path: Path) -> dict[str, Any]:
    """The dictionary of tensors and plain values in a file of ``torch.save``, on the CPU.

    Raises:
        CheckpointError: it is missing, damaged, or holds anything else. Nothing of it is executed.
    """
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "GLOBAL" in str(error):
            reason = "refused: it holds objects other than tensors, which could run code"
            raise CheckpointError(f"{path}: {reason}; do not trust where it comes from") from error
        raise CheckpointError(f"{path}: is no file of torch.save; {_COPY_AGAIN}") from error
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: is missing; {_COPY_AGAIN}") from error
    except OSError as error:
        raise CheckpointError(f"{path}: {_reason(error)}") from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged archive can raise anything
        raise CheckpointError(f"{path}: is damaged ({_reason(error)}); {_COPY_AGAIN}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a {type(value).__name__}, not a dictionary")
    return value


def load_state(directory: Path) -> dict:
    """The trainer's state of the current checkpoint, tensors on the CPU.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    path = current(directory) / STATE_FILE
    state = load_tensors(path)
    if not {"iteration", "data", "lower", "random"} <= state.keys():
        raise CheckpointError(f"{path}: holds no trainer's state; {_COPY_AGAIN}")
    return state


def load_arguments(directory: Path) -> dict:
    """The arguments of the run that wrote the current checkpoint.

    Raises:
        CheckpointError: there is no checkpoint, or the file is damaged.
    """
    return _load_object(current(directory) / ARGUMENTS_FILE)


def saved_head(path: str | Path) -> dict[str, str | int]:
    """Head and prompts of a directory written by training, as options of the prompt encoder.

    Raises:
        CheckpointError: the file is damaged.
    """
    file = locate(path) / SCORE_HEAD_FILE
    if not file.is_file():
        return {}
    head = _load_object(file)
    kinds = {"score_head": str, "system": str, "step_pattern": str}
    if head.get("score_head") not in ("linear", "plus_minus") or not all(
        type(value) is kinds.get(name, int) for name, value in head.items()
    ):
        raise CheckpointError(f"{file}: describes no head; {_COPY_AGAIN}")
    return head


def _load_object(path: Path) -> dict:
    try:
        value = read_json(path)
    except FileError as error:
        raise CheckpointError(f"{error}; {_COPY_AGAIN}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds no object; {_COPY_AGAIN}")
    return value


def load_head(path: str | Path, vocabulary: int) -> dict[str, torch.Tensor] | None:
    """Weight ``[1, vocabulary]`` and bias ``[1]`` of the linear head; None for a plain checkpoint.

    Raises:
        CheckpointError: a directory written by training has none, or it is damaged or of another
            model.
    """
    folder = locate(path)
    file = folder / HEAD_FILE
    if not (folder / BASE_DIRECTORY).is_dir():
        return None
    if not file.is_file():
        if saved_head(folder).get("score_head") == "plus_minus":
            raise CheckpointError(
                f"{folder}: was trained with --score_head plus_minus; a new linear head starts "
                f"from {folder / BASE_DIRECTORY}"
            )
        raise CheckpointError(
            f"{file}: the reward head is missing, without which scores would be random; copy it "
            f"too, or start a new head from {folder / BASE_DIRECTORY}"
        )
    state = load_tensors(file)
    found = {name: tuple(getattr(value, "shape", ())) for name, value in state.items()}
    wanted = {"weight": (1, vocabulary), "bias": (1,)}
    if found != wanted:
        shown = printable(", ".join(f"{name} {list(shape)}" for name, shape in found.items()))
        raise CheckpointError(
            f"{file}: holds {shown or 'nothing'} instead of weight {list(wanted['weight'])}, bias "
            "[1]: it is no linear head, or of another base model"
        )
    return state


def open_base(source: str, dtype: torch.dtype = torch.float32, meta: bool = False) -> nn.Module:
    """The vision-language model of a checkpoint directory or hub name.

    Args:
        meta: compare names and shapes only, without the numbers; takes no memory.

    Raises:
        CheckpointError: there is no such model, a file is damaged, or not every weight of the
            architecture is in it with the right shape.
    """
    _check_directory(source)
    # Weights in the old format of torch are read without running what is pickled in them.
    options = {"device_map": "meta"} if meta else {}
    with _opening(source, "the model"):
        model, report = AutoModelForImageTextToText.from_pretrained(
            source,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            weights_only=True,
            **options,
        )
    names = {name for name, _ in model.named_parameters()}
    lacking = sorted(names & set(report["missing_keys"]))
    misshapen = sorted(str(key[0] if isinstance(key, tuple) else key)
                       for key in report["mismatched_keys"])  # fmt: skip
    problems = []
    if lacking:
        unknown = sorted(report["unexpected_keys"])
        problems.append(f"{len(lacking)} of {len(names)} weights are missing ({_first(lacking)})")
        if unknown:
            problems.append(f"{len(unknown)} names are unknown ({_first(unknown)})")
    if misshapen:
        problems.append(f"{len(misshapen)} weights have another shape ({_first(misshapen)})")
    if problems:
        raise CheckpointError(
            f"{source}: {'; '.join(problems)}: the weights are not those of the architecture in "
            "config.json; save them as transformers names them"
        )
    return model


def open_processor(source: str, processor: str | None = None) -> tuple[Any, str]:
    """The processor of a checkpoint, and a sentence about it if it comes from elsewhere.

    The published code saves none: then it is ``processor``, or that of the base model which the
    checkpoint names.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    if processor is not None:
        with _opening(processor, "the processor"):
            return AutoProcessor.from_pretrained(processor), ""
    _check_directory(source)
    folder = Path(source)
    images = ("processor_config.json", "preprocessor_config.json")
    texts = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")
    if not folder.is_dir() or all(
        any((folder / name).is_file() for name in names) for names in (images, texts)
    ):
        with _opening(source, "the processor"):
            return AutoProcessor.from_pretrained(source), ""
    advice = (
        "copy preprocessor_config.json, the tokenizer's files and the chat template of its base "
        "model there, or name that with --processor (from Python: processor=…)"
    )
    # transformers puts the path in place of the name when it reads the file.
    base = _load_object(folder / "config.json").get("_name_or_path")
    if not isinstance(base, str) or not base or Path(base) == folder:
        raise CheckpointError(f"{source}: holds no processor; {advice}")
    try:
        with _opening(base, "the processor"):
            found = AutoProcessor.from_pretrained(base)
    except CheckpointError as error:
        raise CheckpointError(
            f"{source}: holds no processor, and that of its base model cannot be had ({error}); "
            f"{advice}"
        ) from error
    return found, f"{source}: holds no processor; taking that of its base model {printable(base)}"


def _check_directory(source: str) -> None:
    if Path(source).exists() and not (Path(source) / "config.json").is_file():
        raise CheckpointError(f"{source}: is no checkpoint: it holds no config.json")


@contextlib.contextmanager
def _opening(source: str, what: str) -> Iterator[None]:
    """Turn whatever transformers raises into one line, and keep its reports off the screen."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        path = Path(source)
        if not path.exists() and (path.is_absolute() or source[:1] in ".~" or len(path.parts) > 2):
            raise CheckpointError(f"{source}: there is no such directory")
        yield
    except (CheckpointError, MemoryError):
        raise
    except Exception as error:  # transformers, safetensors, tokenizers and the hub have their own
        if path.exists():
            raise CheckpointError(
                f"{source}: {what} cannot be read: {_reason(error)}; {_COPY_AGAIN}"
            ) from error
        raise CheckpointError(
            f"{source}: there is no such directory, and the hub does not give it: {_reason(error)}"
        ) from error
    finally:
        transformers_logging.set_verbosity(verbosity)


def _first(names: list[str]) -> str:
    more = ", …" if len(names) > _SHOWN else ""
    return ", ".join(printable(name, 80) for name in names[:_SHOWN]) + more


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    lines = str(error).strip().splitlines()
    return printable(lines[0] if lines else type(error).__name__)


@contextlib.contextmanager
def _named(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{directory}: {_reason(error)}") from error


# --- weights of domains and records ------------------------------------------------------------


def save_domain_weights(folder: Path, weighting, average: list[float] | None = None) -> None:
    """Write the domain weights for machines and for people, and their ``average`` if known."""
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


def read_named_weights(path: Path) -> dict[str, float]:
    """Domain weights ``{domain: weight}`` from a ``domain_weights.json``.

    Raises:
        CheckpointError: it is damaged, or holds anything else than finite numbers of at least 0.
    """
    weights = _load_object(path)
    for name, weight in weights.items():
        if not is_number(weight) or weight < 0:
            raise CheckpointError(
                f"{path}: the weight of '{printable(name)}' must be a number of at least 0"
            )
    if not any(weights.values()):
        raise CheckpointError(f"{path}: holds no weight above 0")
    return weights


def domain_file(path: str | Path) -> Path:
    """The file of domain weights that ``path`` is, or that a run or published folder holds."""
    path = Path(path)
    return locate(path) / DOMAIN_FILE if path.is_dir() else path


def names_domains(path: Path) -> bool:
    """Whether a file of domain weights says whose they are."""
    return _is_table(path) or "domains" in load_tensors(path)


def _is_table(path: Path) -> bool:
    return path.suffix == ".json"


def load_domain_weights(path: Path, domains: list[str]) -> torch.Tensor:
    """Raw weights for ``domains`` from a ``domain_weights.pt``, ours or the published one, or from
    a ``domain_weights.json``.

    Ours name their domains and are matched by name, unknown domains starting at 0. The published
    file holds a bare vector in the order of first appearance, which must have as many entries.

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
    """The raw weights that give ``weights``; of the average weight it is 0."""
    values = torch.tensor(list(weights.values()), dtype=torch.float64)
    positive = values / values.mean() * math.log(2)  # softplus(0) = log 2
    positive = positive.clamp(min=1e-30)  # a weight of 0 has no raw one
    raw = positive + (-torch.expm1(-positive)).log()  # the inverse of softplus
    return dict(zip(weights, raw.tolist(), strict=True))


def _matched(raw: dict[str, float], domains: list[str], path: Path) -> torch.Tensor:
    if not raw.keys() & set(domains):
        raise CheckpointError(f"{path}: holds none of the train file's domains")
    return torch.tensor([raw.get(domain, 0.0) for domain in domains])


# --- the rest ----------------------------------------------------------------------------------


def truncate_metrics(directory: Path, iteration: int) -> None:
    """Drop the lines of ``metrics.jsonl`` that a resumed run will write again, or cut short."""
    path = directory / METRICS_FILE
    if not path.exists():
        return
    lines = [line for line in complete_lines(path) if line["iteration"] <= iteration]
    with replacing(path) as file:
        file.writelines(map(json_line, lines))


def fingerprint(path: str | Path) -> str:
    """A hash that changes when any part of a reward model does, in well below a second.

    Of a safetensors file it covers the header (every tensor's name, type, shape and place), the
    file's size and four blocks of 4 KiB of every tensor, of small ones all bytes; other files of
    weights are sampled alike as one, the head, configuration, tokenizer and templates are read
    whole. Any training moves nearly every number of a tensor it touches, so that no trained tensor
    keeps its blocks, and a 2B model costs a few thousand reads instead of nine gigabytes. Times of
    files are not looked at: copying changes them, and some writers keep them.
    """
    folder = locate(path)
    base = folder / BASE_DIRECTORY
    files = sorted(p for p in (base if base.is_dir() else folder).rglob("*") if p.is_file())
    files += [folder / name for name in (HEAD_FILE, SCORE_HEAD_FILE) if (folder / name).is_file()]
    digest = hashlib.sha256()
    with _named(folder):
        for file in files:
            digest.update(f"{file.relative_to(folder).as_posix()}\0".encode())
            digest.update(f"{file.stat().st_size}\0".encode())
            with file.open("rb") as stream:
                if file.suffix == ".safetensors":
                    _sample_tensors(digest, stream, file)
                elif file.suffix in (".bin", ".pth"):
                    _sample(digest, stream, 0, file.stat().st_size, 1024)
                else:
                    digest.update(stream.read())
    return digest.hexdigest()


def _sample_tensors(digest, stream: BinaryIO, file: Path) -> None:
    length = int.from_bytes(stream.read(8), "little")
    if length > file.stat().st_size:
        raise CheckpointError(f"{file}: is damaged; {_COPY_AGAIN}")
    header = stream.read(length)
    digest.update(header)
    try:
        ranges = [v["data_offsets"] for k, v in json.loads(header).items() if k != "__metadata__"]
        for start, end in ranges:
            _sample(digest, stream, 8 + length + start, end - start)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: is damaged; {_COPY_AGAIN}") from error


def _sample(digest, stream: BinaryIO, start: int, length: int, blocks: int = _BLOCKS) -> None:
    """Add evenly spread blocks of ``length`` bytes from ``start``, the first and last included."""
    if length <= blocks * _BLOCK:
        stream.seek(start)
        digest.update(stream.read(length))
        return
    for block in range(blocks):
        stream.seek(start + block * (length - _BLOCK) // (blocks - 1))
        digest.update(stream.read(_BLOCK))


def file_fingerprint(path: str | Path) -> str:
    """A hash of a file's size and of blocks spread over it; of a small file, of all of it."""
    path = Path(path)
    digest = hashlib.sha256(f"{path.stat().st_size}\0".encode())
    with path.open("rb") as stream:
        _sample(digest, stream, 0, path.stat().st_size, 4 * _BLOCKS)
    return digest.hexdigest()
