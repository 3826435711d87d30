"""What a GPU does during a bilevel cycle: its kernels by family, its pauses, its waits."""

from __future__ import annotations

import collections
import re
import warnings
from collections.abc import Callable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

# Names of kernels, first match wins. The names are those of cuBLAS, cuDNN, PyTorch and torchao.
FAMILIES = {
    "attention": r"flash|fmha|attention|sdpa",
    "matrix products": r"gemm|nvjet|cutlass|cublas|wgmma|gemv|splitK|dot_kernel",
    "AdamW": r"adam|multi_tensor_apply",
    "copies and casts": r"copy|cast|Memcpy|CatArray",
    "softmax and sums": r"softmax|reduce|norm|cumsum|scan",
    "rows by index": r"index|gather|scatter|embedding|sort|radix",
    "zeros": r"Memset|Fill",
    "elementwise": r"elementwise|vectorized|triton",
}


def family(kernel: str) -> str:
    """The name in :data:`FAMILIES` to which a kernel belongs."""
    for name, pattern in FAMILIES.items():
        if re.search(pattern, kernel, re.IGNORECASE):
            return name
    return "other"


def traced(function: Callable[[], None]) -> dict:
    """What ``function`` makes the GPU do.

    Returns:
        ``idle``: share of the time from the first kernel to the end of the last one in which none
        ran, profiler included; ``kernels``: how many there were; ``families``: {family: share of
        the kernels' time}; ``longest``: the ten kernels that took most time, each with its share.
    """
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as run:
        function()
        torch.cuda.synchronize()
    spans, by_family, by_name = [], collections.Counter(), collections.Counter()
    for event in run.profiler.kineto_results.events():
        if event.device_type() != DeviceType.CUDA or event.duration_ns() == 0:
            continue
        if event.name().startswith(("ProfilerStep", "## ", "Optimizer.")):  # spans, not kernels
            continue
        spans.append((event.start_ns(), event.start_ns() + event.duration_ns()))
        by_family[family(event.name())] += event.duration_ns()
        by_name[event.name()[:160]] += event.duration_ns()
    spans.sort()
    busy, end = 0, spans[0][0]
    for start, stop in spans:
        busy += max(0, stop - max(start, end))
        end = max(end, stop)
    total = sum(by_family.values())
    return {
        "idle": 1 - busy / (end - spans[0][0]),
        "kernels": len(spans),
        "milliseconds": (end - spans[0][0]) / 1e6,
        "families": {name: spent / total for name, spent in by_family.most_common()},
        "longest": {name: spent / total for name, spent in by_name.most_common(10)},
    }


def waits(function: Callable[[], None]) -> dict[str, int]:
    """Where ``function`` makes the processor wait for the GPU: {file:line: times}."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            function()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found = collections.Counter(
        f"{'/'.join(warning.filename.split('/')[-2:])}:{warning.lineno}"
        for warning in caught
        if "synchronizing" in str(warning.message)
    )
    return dict(found.most_common())
