"""The data of a run: with a fingerprint that old checkpoints know, and without torch."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import pytest

from reweighting.records import dataset as records_of_a_run
from reweighting.records.dataset import load_data
from reweighting.training.arguments import parse_arguments
from tests.conftest import REPOSITORY, command


@pytest.fixture(params=["array", "lines"])
def data(request, dataset, tmp_path):
    """The data as JSON arrays, or as JSON Lines with a byte order mark, blank lines and CRLF."""
    for name in ("train.json", "meta.json"):
        text = (dataset / name).read_text()
        if request.param == "lines":
            lines = "\r\n\r\n".join(map(json.dumps, json.loads(text)))
            text = f"\ufeff{lines}\r\n\n"
        (tmp_path / name).write_bytes(text.encode())
    return tmp_path


@pytest.mark.parametrize("flags", [[], ["--train_subset", "outcome"]])
def test_the_fingerprint_is_of_the_bytes_of_the_files(data, dataset, monkeypatch, flags):
    monkeypatch.setattr(records_of_a_run, "AT_ONCE", 10)  # numbers that are written at once
    argv = command(data, data / "run", "--image_root", str(dataset), *flags)
    found = load_data(parse_arguments(argv), progress=False)
    digest = hashlib.sha256()
    for name, samples in (("train.json", found.train), ("meta.json", found.meta)):
        digest.update((data / name).read_bytes())
        digest.update(json.dumps([sample.record for sample in samples]).encode())
    digest.update(b"null")
    assert found.fingerprint == digest.hexdigest()


def test_records_need_no_torch():
    folder = REPOSITORY / "reweighting" / "records"
    names = (path.relative_to(REPOSITORY).with_suffix("") for path in folder.rglob("*.py"))
    modules = sorted(".".join(name.parts).removesuffix(".__init__") for name in names)
    assert "reweighting.records.answers.values" in modules
    script = f"import sys, {', '.join(modules)}; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("False\n", "")
