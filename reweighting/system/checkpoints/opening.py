"""Open what is in a checkpoint: the trainer's state, the head, the base model, its processor.

Whatever is missing, damaged or of another model raises one :class:`~.finding.CheckpointError` that
names the file and says what to do, and nothing that is read can run code.
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging as transformers_logging

from ..files import FileError, read_json
from ..terminal import printable
from .finding import (
    ARGUMENTS_FILE,
    COPY_AGAIN,
    HEAD_FILE,
    SCORE_HEAD_FILE,
    STATE_FILE,
    CheckpointError,
    base_folder,
    current,
    locate,
    reason,
)

_SHOWN = 3  # names in a message


def load_tensors(path: Path) -> dict[str, Any]:
    """The dictionary of tensors and plain values in a file of ``torch.save``, on the CPU.

    Raises:
        CheckpointError: it is missing or damaged, or holds anything else, which is not executed.
    """
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "GLOBAL" in str(error):
            refused = "refused: it holds objects other than tensors, which could run code"
            raise CheckpointError(f"{path}: {refused}; do not trust where it comes from") from error
        raise CheckpointError(f"{path}: is no file of torch.save; {COPY_AGAIN}") from error
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: is missing; {COPY_AGAIN}") from error
    except OSError as error:
        raise CheckpointError(f"{path}: {reason(error)}") from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged archive can raise anything
        raise CheckpointError(f"{path}: is damaged ({reason(error)}); {COPY_AGAIN}") from error
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
        raise CheckpointError(f"{path}: holds no trainer's state; {COPY_AGAIN}")
    return state


def load_arguments(directory: Path) -> dict:
    """The arguments of the run that wrote the current checkpoint.

    Raises:
        CheckpointError: there is no checkpoint, or the file is damaged.
    """
    return load_object(current(directory) / ARGUMENTS_FILE)


def saved_head(path: str | Path) -> dict[str, str | int]:
    """The head and the prompts of a directory written by training, as the encoder's options.

    They are empty for a plain checkpoint.

    Raises:
        CheckpointError: the file is damaged.
    """
    file = locate(path) / SCORE_HEAD_FILE
    if not file.is_file():
        return {}
    head = load_object(file)
    kinds = {"score_head": str, "system": str, "step_pattern": str}
    if head.get("score_head") not in ("linear", "plus_minus") or not all(
        type(value) is kinds.get(name, int) for name, value in head.items()
    ):
        raise CheckpointError(f"{file}: describes no head; {COPY_AGAIN}")
    return head


def load_object(path: Path) -> dict:
    """The JSON object in a file.

    Raises:
        CheckpointError: the file is missing or damaged, or holds anything else.
    """
    try:
        value = read_json(path)
    except FileError as error:
        raise CheckpointError(f"{error}; {COPY_AGAIN}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds no object; {COPY_AGAIN}")
    return value


def load_head(path: str | Path, vocabulary: int) -> dict[str, torch.Tensor] | None:
    """Weight ``[1, vocabulary]`` and bias ``[1]`` of the linear head; None for a plain checkpoint.

    Raises:
        CheckpointError: a directory written by training has no head, or it is damaged or belongs
            to another model.
    """
    folder = locate(path)
    base, file = base_folder(folder), folder / HEAD_FILE
    if base is None:
        return None
    if not file.is_file():
        if saved_head(folder).get("score_head") == "plus_minus":
            raise CheckpointError(
                f"{folder}: was trained with --score_head plus_minus; a new linear head starts "
                f"from {base}"
            )
        raise CheckpointError(
            f"{file}: the reward head is missing, without which scores would be random; copy it "
            f"too, or start a new head from {base}"
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
        meta: on the meta device: names and shapes are compared, but no numbers are read.

    Raises:
        CheckpointError: there is no such model, a file is damaged, or a weight of the architecture
            is missing or has another shape.
    """
    _check_directory(source)
    # weights_only: weights in torch's old format are read without running what is pickled in them.
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
    """The processor of a checkpoint, and a sentence for the user if it comes from elsewhere.

    The published code saves no processor: then that of the base model is taken which the
    checkpoint names. ``processor``, a directory or hub name, overrides both.

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
    base = load_object(folder / "config.json").get("_name_or_path")
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
    """Turn whatever transformers raises into one line, and keep its reports off the screen.

    Raises:
        CheckpointError: in place of any error but lack of memory.
    """
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
                f"{source}: {what} cannot be read: {reason(error)}; {COPY_AGAIN}"
            ) from error
        raise CheckpointError(
            f"{source}: there is no such directory, and the hub does not give it: {reason(error)}"
        ) from error
    finally:
        transformers_logging.set_verbosity(verbosity)


def _first(names: list[str]) -> str:
    more = ", …" if len(names) > _SHOWN else ""
    return ", ".join(printable(name, 80) for name in names[:_SHOWN]) + more
