"""``make gpu`` rehearsed on the CPU: parts, their files, the table of bars."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.report import report
from benchmarks.gpu.trace import family
from tests.conftest import REPOSITORY


def rehearse(folder: Path, *parts: str) -> str:
    command = [sys.executable, "-m", "benchmarks.gpu", "--rehearse", "--cycles", "1"]
    command += ["--out", str(folder), "--parts", *parts]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True).stdout


def test_parts_leave_their_figures_and_are_not_run_twice(tmp_path):
    said = rehearse(tmp_path, "card", "2b")
    assert "| 2b | " in said and "**missed**" not in said.split("not run")[0]
    found = json.loads((tmp_path / "2b.json").read_text())
    assert found["figures"]["lower_ms"] > 0 and found["figures"]["upper_tflop"] > 0
    assert rehearse(tmp_path, "card", "2b").startswith("card: done before\n2b: done before\n")
    assert (tmp_path / "report.md").read_text() in said + "\n"


@pytest.mark.slow
def test_every_part_runs(tmp_path):
    said = rehearse(tmp_path, *PARTS)
    for path in tmp_path.glob("*.json"):
        assert "error" not in json.loads(path.read_text())["figures"], path.name
    assert len(list(tmp_path.glob("*.json"))) == len(PARTS), said


def test_bars_say_what_was_met_missed_and_not_run(tmp_path):
    figures = {
        "card": {"matmul_tflops": 500.0, "copy_tb_per_s": 2.0},
        "published": {"lower_ms": 100.0, "upper_ms": 500.0, "cycle_ms": 1000.0},
        "2b": {"lower_ms": 50.0, "upper_ms": 150.0, "cycle_ms": 400.0, "peak_gib": 50.0,
               "lower_tflop": 5.0, "upper_tflop": 10.0, "trained": 2_000_000_000},
        "estimates": {"2b": 47.0},
    }  # fmt: skip
    for name, values in figures.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"seconds": 1, "figures": values}))
    text, met = report(tmp_path)
    assert not met
    assert "| 2B, full fine-tuning, peak | at most 48 GiB | 50 GiB | **missed** |" in text
    assert "| 2b: estimate off by | at most 10 % | 6 % | met |" in text
    assert (
        "| 2b: a cycle, batch 1/1, against the published way | at least 2 x | 2.5 x | met |" in text
    )
    assert "| 7B, `adamw_8bit`, peak | at most 80 GiB |  | not run |" in text
    assert "| 2b | 50.0 | 38.0 (10.0 + 28.0) | 150.0 | 56.0 (20.0 + 36.0) | 400.0 |" in text


@pytest.mark.parametrize(
    "kernel, name",
    [
        ("nvjet_sm90_tst_192x192_64x3_2x1_v_bz_coopB_NTN", "matrix products"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16", "attention"),
        ("multi_tensor_apply_kernel<at::native::FusedOptimizerTensorListMetadata<4>>", "AdamW"),
        (
            "vectorized_elementwise_kernel<8, at::native::bfloat16_copy_kernel_cuda",
            "copies and casts",
        ),
        ("Memset (Device)", "zeros"),
    ],
)
def test_kernels_belong_to_families(kernel, name):
    assert family(kernel) == name
