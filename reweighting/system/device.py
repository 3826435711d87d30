"""What ``--precision`` and ``--device`` stand for."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def autocast(device: torch.device | str, precision: str) -> AbstractContextManager:
    """Compute in ``precision`` (a key of :data:`DTYPES`) over fp32 parameters."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=DTYPES[precision])


def unusable(device: str) -> str | None:
    """Why this machine cannot compute on ``device`` (cpu, cuda or cuda:N), or None."""
    kind, _, number = device.partition(":")
    found = torch.cuda.device_count()
    if kind != "cuda" or (number or "0") in map(str, range(found)):
        return None
    if not number:
        return "no CUDA device is there; try --device cpu"
    return f"CUDA device {number} is not there ({found} found); --device cpu runs on the processor"
