"""Large files: checked by several processes, kept, and held to what was checked."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from reweighting.records import building, checking
from reweighting.records.cache import cache_folder
from reweighting.records.chains import chains_of, questions_of
from reweighting.records.problems import DataError
from reweighting.records.reader import RecordReader, load_meta, load_train
from tests.conftest import REPOSITORY, write_dataset
from tests.training.test_training import metrics_of, train


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """Every file is taken for a large one; the folder of the cache."""
    monkeypatch.setattr(checking, "SMALL", 0)
    monkeypatch.setattr(building, "PIECE", 1500)  # characters: a few records
    monkeypatch.setenv("DREAMPRM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "records"


@pytest.fixture
def data(tmp_path):
    return write_dataset(tmp_path / "data")


def reader(data: Path, name: str = "train.json", **options) -> RecordReader:
    return RecordReader(str(data / name), str(data), **options)


def not_read(*_):
    pytest.fail("the file was parsed again")


def test_a_kept_table_gives_the_samples_that_the_file_gives(data, kept, monkeypatch):
    first, (meta, _) = list(load_train(reader(data))), load_meta(reader(data, "meta.json"))
    assert len(list(kept.iterdir())) == 2
    monkeypatch.setattr(building, "record_pieces", not_read)
    again, (meta_again, _) = load_train(reader(data)), load_meta(reader(data, "meta.json"))
    assert list(again) == first and list(meta_again) == list(meta)
    assert list(pickle.loads(pickle.dumps(again))) == first  # as a worker that is no fork gets it
    monkeypatch.undo()
    assert not cache_folder().is_relative_to(kept.parent)
    small = load_train(reader(data))
    assert list(small) == first and list(pickle.loads(pickle.dumps(small))) == first
    records = json.loads((data / "train.json").read_text())
    assert [sample.record for sample in first] == list(range(1, len(records) + 1))
    assert [sample.accuracies for sample in first] == [[r["accuracy"]] for r in records]
    assert ["".join(sample.prompts[-1].steps) for sample in first] == [r["add"] for r in records]
    assert [sample.images for sample in first] == [(str(data / r["image_path"]),) for r in records]


def test_lines_and_arrays_are_cut_into_the_same_records(data, kept):
    array = list(load_train(reader(data)))
    lines = [json.dumps(record) for record in json.loads((data / "train.json").read_text())]
    (data / "train.json").write_text("\n \n".join(lines))
    assert list(load_train(reader(data))) == array


def test_other_content_or_another_way_to_read_it_is_another_entry(data, kept):
    load_train(reader(data))
    for options in ({"step_pattern": r"^Step \d"}, {"allow_external_images": True}):
        load_train(reader(data, **options))
    assert len(list(kept.iterdir())) == 3
    shutil.copytree(data, data.with_name("copy"))  # the same file with other images
    load_train(reader(data.with_name("copy")))
    assert len(list(kept.iterdir())) == 4
    text = (data / "train.json").read_text()
    (data / "train.json").write_text(text.replace("red", "rot"))
    assert any("rot" in sample.text for sample in load_train(reader(data)))
    assert len(list(kept.iterdir())) == 5


@pytest.mark.parametrize("lines", [False, True])
def test_problems_are_named_as_in_a_small_file_and_remembered(data, kept, monkeypatch, lines):
    records = json.loads((data / "train.json").read_text())
    records[3]["accuracy"] = 2
    del records[40]["dataset"]
    records[50] = 7
    records[60]["image_path"] = ["images/0.png", "images/none.png"]
    text = "\n".join(map(json.dumps, records)) if lines else json.dumps(records)
    (data / "train.json").write_text(text)
    found = [reader(data) for _ in range(3)]
    samples = [list(load_train(found[0])), list(load_train(found[1]))]
    monkeypatch.undo()
    samples.append(list(load_train(found[2])))
    assert samples[0] == samples[1] == samples[2] and len(samples[0]) == len(records) - 4
    assert found[0].all_problems() == found[1].all_problems() == found[2].all_problems()
    told = [text.split(": ", 1)[1] for text in found[0].all_problems()]
    assert told == [
        "record 4: field 'accuracy': must lie in [0, 1], is 2",
        "record 41: field 'dataset': is missing",
        "record 51: must be an object, is 7",
        f"record 61: field 'image_path': {data}/images/none.png does not exist",
    ]
    assert found[0].left_out() == found[1].left_out() == found[2].left_out()


def test_a_broken_line_is_the_only_error_and_nothing_is_kept(data, kept):
    records = json.loads((data / "train.json").read_text())
    lines = [json.dumps(record) for record in [{"input": 1}, *records]]
    lines[70] = lines[70][:-1]
    (data / "train.json").write_text("\n".join(lines))
    found = reader(data)
    with pytest.raises(DataError, match="line 71: not JSON"):
        load_train(found)
    assert not found.problems and not list(kept.iterdir())


def test_images_that_change_later_are_looked_at_again(data, kept, monkeypatch):
    whole = len(load_train(reader(data)))
    picture = data / "images" / "5.png"
    content = picture.read_bytes()
    picture.write_bytes(b"no picture")
    for why in ("cannot be read", "does not exist"):
        found = reader(data)
        assert len(load_train(found)) < whole
        assert all(f"{picture} {why}" in text for text in found.all_problems())
        picture.unlink(missing_ok=True)
    picture.write_bytes(content)
    assert len(load_train(reader(data))) == whole  # it is back
    Image.new("RGB", (84, 84)).save(picture)
    opened = []
    monkeypatch.setattr(building, "record_pieces", not_read)
    monkeypatch.setattr(checking, "image_problems", lambda paths, _: opened.append(paths) or [])
    for _ in range(2):
        assert len(load_train(reader(data))) == whole
    assert opened == [[str(picture)]]  # once, and no other


def test_an_image_that_is_led_outside_the_root_later_is_refused(data, kept, tmp_path):
    load_train(reader(data))
    outside = tmp_path / "outside.png"
    Image.new("RGB", (50, 50)).save(outside)
    (data / "images" / "5.png").unlink()
    (data / "images" / "5.png").symlink_to(outside)
    found = reader(data)
    load_train(found)
    assert found.problems and "lies outside the image root" in found.all_problems()[0]


@pytest.mark.parametrize("harm", ["cut", "garbage", "no about", "half an about", "empty"])
def test_a_broken_entry_is_made_anew(data, kept, harm):
    first = list(load_train(reader(data)))
    [entry] = kept.iterdir()
    rows, about = entry / "rows.arrow", entry / "about.json"
    if harm == "cut":
        rows.write_bytes(rows.read_bytes()[:-100])
    elif harm == "garbage":
        rows.write_bytes(bytes(rows.stat().st_size))
    elif harm == "no about":
        about.unlink()
    elif harm == "half an about":
        about.write_text(about.read_text()[:40])
    else:
        rows.write_bytes(b"")
    assert list(load_train(reader(data))) == first
    assert [path.name for path in kept.iterdir()] == [entry.name]
    assert {path.name for path in entry.iterdir()} == {
        *("about.json", "rows.arrow", "images.arrow", "links.arrow")
    }


def test_where_the_cache_cannot_be_written_training_goes_on(data, kept, monkeypatch, capsys):
    kept.parent.parent.joinpath("file").write_text("")
    monkeypatch.setenv("DREAMPRM_CACHE", str(kept.parent.parent / "file" / "cache"))
    samples = load_train(reader(data))
    said = capsys.readouterr().err
    assert "cannot be written (Not a directory): what is checked now is checked again" in said
    assert list(samples) and not kept.exists()


def test_two_processes_that_check_at_once_share_one_entry(data, kept, tmp_path):
    script = (
        "import sys; from reweighting.records import checking, reader\n"
        "checking.SMALL = 0; input()\n"
        "found = reader.RecordReader(sys.argv[1] + '/train.json', sys.argv[1])\n"
        "print(sum(len(sample.text) for sample in reader.load_train(found)))"
    )
    command = [sys.executable, "-c", script, str(data)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, cwd=REPOSITORY, **pipes) for _ in range(2)]
    for process in both:
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=120)[0] for process in both]
    assert said[0] == said[1] and int(said[0])
    assert len(list(kept.iterdir())) == 1


def test_a_part_of_the_records_has_the_chains_of_its_list(data, kept):
    samples = load_train(reader(data))
    rng = random.Random(0)
    for _ in range(50):
        part = samples.take(sorted(rng.sample(range(len(samples)), rng.randint(1, 60))))
        assert chains_of(part) == chains_of(list(part))
    meta, _ = load_meta(reader(data, "meta.json"))
    part = meta.take([5, 2, 9])
    assert list(questions_of(part)) == questions_of(list(part))


def test_a_run_on_a_kept_table_is_the_run_on_a_small_file(data, kept, monkeypatch, tmp_path):
    flags = [
        *("--batch_by", "cot", "--reweighting", "instance_table", "--num_workers", "2"),
        *("--meta_loss", "rank", "--train_subset", "bis", "--subset_size", "60"),
    ]
    records = json.loads((data / "meta.json").read_text())
    records += [record | {"true_false": not record["true_false"]} for record in records]
    (data / "meta.json").write_text(json.dumps(records))
    runs = [train(data, tmp_path / "first", *flags), train(data, tmp_path / "second", *flags)]
    assert len(list(kept.iterdir())) == 2
    monkeypatch.undo()
    runs.append(train(data, tmp_path / "third", *flags))
    untimed = [
        [{k: v for k, v in line.items() if "seconds" not in k} for line in metrics_of(run)]
        for run in runs
    ]
    for line in (line for lines in untimed for line in lines):
        for key in ("waited", "memory_gib", "records_per_second"):
            line.pop(key, None)
    assert untimed[0] == untimed[1] == untimed[2]
    tables = [(run / "instance_weights.parquet").read_bytes() for run in runs]
    assert tables[0] == tables[1] == tables[2]


def test_the_cache_lies_where_programs_keep_what_can_be_made_anew(monkeypatch):
    monkeypatch.delenv("DREAMPRM_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/dreamprm")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path(os.path.expanduser("~/.cache/dreamprm"))
