"""Write a reward model as a checkpoint of one network, with a score row and no vocabulary.

Both heads are one vector in the space of the hidden state h (see
:mod:`reweighting.reward_model.network`), so z = ⟨row, h⟩ + bias is all that others need.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict

from ..records.steps import LABELS
from ..reward_model import RewardModel
from ..system.files import FileError, parse_json, read_text, write_json, write_text

MODELING_FILE = "modeling_dreamprm.py"
MODEL_CLASS = "DreamPRMForSequenceClassification"
LABEL = "log-odds of a right answer"
OVERRIDES_FILE = "hf_overrides.json"
VLLM_VERSION = "0.33.0"  # whose code was read
# What it calls the sequence classifier over a model type: those whose language model is
# converted with it (vllm/model_executor/models/qwen2_vl.py and qwen2_5_vl.py). That of Qwen3-VL is
# built without a score row (qwen3_vl.py); for the others the code was not read closely enough.
VLLM_CLASSES = {
    "qwen2_vl": "Qwen2VLForSequenceClassification",
    "qwen2_5_vl": "Qwen2_5_VLForSequenceClassification",
}
# There the row belongs to the language model: a score row of the whole model is not loaded
# (vllm/model_executor/models/adapters.py).
VLLM_SCORE = "language_model.score"
_ROWS = 8192  # of the vocabulary in float64 at a time


@torch.no_grad()
def score_row(model: RewardModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight ``[1, hidden]`` and bias ``[1]`` of z = ⟨weight, h⟩ + bias, in float64."""
    vocabulary = model.base_model.get_output_embeddings().weight  # [vocabulary, hidden]
    if model.LN is None:
        plus, minus = vocabulary[list(model.label_ids)].double()
        return (plus - minus)[None], torch.zeros(1, dtype=torch.float64)
    pieces = zip(model.LN.weight.split(_ROWS, dim=1), vocabulary.split(_ROWS), strict=True)
    weight = sum(head.double() @ rows.double() for head, rows in pieces)
    return weight, model.LN.bias.double()


def vllm_class(model: RewardModel) -> str:
    """The name by which vLLM knows the sequence classifier over this model.

    Raises:
        FileError: it has none for this architecture.
    """
    kind = model.base_model.config.model_type
    if kind not in VLLM_CLASSES:
        known = ", ".join(VLLM_CLASSES)
        raise FileError(f"{kind} cannot be exported for vLLM ({VLLM_VERSION}), only {known} can")
    return VLLM_CLASSES[kind]


def vllm_overrides(model: RewardModel) -> dict[str, Any]:
    """What makes vLLM read the head ``plus_minus`` off the run's own ``base_model/``.

    Raises:
        FileError: see :func:`vllm_class`.
    """
    return {
        "architectures": [vllm_class(model)],
        "classifier_from_token": [LABELS[1], LABELS[0]],  # the second one counts as right
        "method": "from_2_way_softmax",
    }


def write_for_transformers(model: RewardModel, folder: Path, dtype: torch.dtype) -> None:
    """Write a checkpoint that brings its own class, for ``AutoModelForSequenceClassification``."""
    name = f"{Path(MODELING_FILE).stem}.{MODEL_CLASS}"
    _write(model, folder, dtype, "score", MODEL_CLASS, {"AutoModelForSequenceClassification": name})
    source = read_text(Path(__file__).with_name(MODELING_FILE))
    # The auto classes insist on a model that names the configuration of the checkpoint.
    kind = type(model.base_model.config).__name__
    write_text(folder / MODELING_FILE, source.replace("PreTrainedConfig", kind))


def write_for_vllm(model: RewardModel, folder: Path, dtype: torch.dtype) -> None:
    """Write a checkpoint that vLLM opens as a classifier.

    Raises:
        FileError: see :func:`vllm_class`.
    """
    _write(model, folder, dtype, VLLM_SCORE, vllm_class(model))


def _write(
    model: RewardModel,
    folder: Path,
    dtype: torch.dtype,
    score: str,
    architecture: str,
    auto_map: dict[str, str] | None = None,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    weight, bias = score_row(model)
    tensors = {
        f"model.{name}": value for name, value in model.base_model.model.state_dict().items()
    }
    tensors |= {f"{score}.weight": weight, f"{score}.bias": bias}
    save_torch_state_dict(
        {
            name: value.to(dtype) if value.is_floating_point() else value
            for name, value in tensors.items()
        },
        folder,
    )
    config = model.base_model.config
    for part in (config, *(getattr(config, name) for name in config.sub_configs)):
        part.dtype = dtype
    entries = parse_json(config.to_json_string())
    entries |= {"architectures": [architecture], "num_labels": 1}
    entries |= {"id2label": {"0": LABEL}, "label2id": {LABEL: 0}}
    if auto_map is not None:
        entries["auto_map"] = auto_map
    write_json(folder / "config.json", entries)
    encoder = model.encoder
    if encoder.resizes:  # the bounds that the model was trained with
        bounds = {"shortest_edge": encoder.min_pixels, "longest_edge": encoder.max_pixels}
        encoder.processor.image_processor.size = bounds
    encoder.processor.save_pretrained(folder)
