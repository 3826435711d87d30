"""Bad input: one clear line with file, record and field, exit code 2, before a model is loaded."""

from __future__ import annotations

import io
import json
import shutil
import struct
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image

import main as program
from reweighting.reward_model import model as reward_model
from reweighting.rollouts import __main__ as rollouts
from tests.conftest import REPOSITORY, command, write_dataset

PUBLISHED_META = REPOSITORY.parent / "shared" / "data" / "dreamprm_meta.json"


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A small data set of its own; loading a model is an error here."""

    def no_model(*args, **kwargs):
        raise AssertionError("a model was loaded before the data were checked")

    monkeypatch.setattr(reward_model.RewardModel, "from_pretrained", no_model)
    return write_dataset(tmp_path / "data", questions=6)


def refused(capsys, data: Path, *flags: str) -> str:
    """Run main.py, expect exit code 2 and no output directory; returns what it said."""
    weights_path = data.parent / "run"
    try:
        code = program.main(command(data, weights_path, *flags))
    except SystemExit as exit:  # argparse
        code = exit.code
    assert code == 2
    assert not weights_path.exists()
    return capsys.readouterr().err


def edit(data: Path, file: str, record: int, **fields) -> None:
    """Change fields of a record (from 1); ``...`` removes one."""
    records = json.loads((data / file).read_text())
    for name, value in fields.items():
        if value is ...:
            del records[record - 1][name]
        else:
            records[record - 1][name] = value
    (data / file).write_text(json.dumps(records))


def nested(levels: int) -> list:
    """Lists within lists."""
    value: list = []
    for _ in range(levels - 1):
        value = [value]
    return value


def steps(count: int) -> str:
    """A question and a chain of so many steps."""
    return "Which?\n\n" + "\n".join(f"Step {number}: a" for number in range(1, count + 1))


def write_candidates(data: Path, **fields) -> Path:
    """A candidates file of one record."""
    path = data / "candidates.json"
    record = {"question": "Which colour?", "image_path": "images/0.png", "candidates": ["red"]}
    path.write_text(json.dumps([record | fields]))
    return path


@pytest.mark.parametrize(
    "file, fields, expected",
    [
        ("train.json", {"input": ...}, "field 'input': is missing"),
        ("train.json", {"input": "  "}, "field 'input': is empty"),
        ("train.json", {"add": 7}, "field 'add': must be text, is 7"),
        ("train.json", {"dataset": None}, "field 'dataset': must be text, is null"),
        ("train.json", {"accuracy": ...}, "field 'accuracy': is missing"),
        ("train.json", {"accuracy": 1.5}, "field 'accuracy': must lie in [0, 1], is 1.5"),
        ("train.json", {"accuracy": -0.1}, "field 'accuracy': must lie in [0, 1], is -0.1"),
        ("train.json", {"accuracy": float("nan")}, "field 'accuracy': must lie in [0, 1], is nan"),
        ("train.json", {"accuracy": "0.5"}, "field 'accuracy': must be a number, is \"0.5\""),
        ("train.json", {"accuracy": True}, "field 'accuracy': must be a number, is true"),
        ("train.json", {"input": "a <|image_pad|>"}, "control token <|image_pad|>"),
        ("train.json", {"add": "a <|endoftext|>"}, "control token <|endoftext|>"),
        ("train.json", {"add": "a <|vision_pad|>"}, "control token <|vision_pad|>"),
        ("train.json", {"add": "a <|im_<image>end|>"}, "control token <|im_end|>"),
        ("train.json", {"add": "a <ima<image>ge>"}, "control token <image>"),
        ("train.json", {"add": "a \ud83d"}, "field 'add': holds half of a surrogate pair, \\ud83d"),
        ("train.json", {"note": ["\udc00"]}, "field 'note': holds half of a surrogate pair"),
        ("train.json", {"\ud83d": 1}, "field '\\ud83d': holds half of a surrogate pair, \\ud83d"),
        ("train.json", {"note": 10**400}, "field 'note': holds a number of more than 300 digits"),
        ("train.json", {"note": nested(150)}, "field 'note': nested deeper than 100 levels"),
        ("train.json", {"accuracy": 10**399}, "field 'accuracy': holds a number of more than"),
        ("train.json", {"accuracy": 10**299}, "field 'accuracy': must lie in [0, 1], is 1000"),
        ("train.json", {"add": "a" * 200_001}, "field 'add': holds 200001 characters, more than"),
        ("train.json", {"add": steps(1001)}, "field 'add': holds 1001 steps, more than 1000"),
        ("train.json", {"image_path": "images/none.png"}, "none.png does not exist"),
        ("train.json", {"image_path": "images/\ud83d.png"}, "holds half of a surrogate pair"),
        ("train.json", {"image_path": "images/\0.png"}, r"holds a NUL character: images/\x00.png"),
        ("train.json", {"image_path": "data:image/png;base64," + "A" * 10**6},
         "(a data: URI of 1,000,022 characters) cannot be read: holds no image"),
        ("train.json", {"image_path": "file:///a/b.png"}, "give its path instead, /a/b.png"),
        ("train.json", {"image_path": "file://host/a/b.png"}, "give its path instead, /a/b.png"),
        ("train.json", {"image_path": "s3://a/b.png"}, "is a URL of an unknown kind (s3://a/b.png)"),
        ("train.json", {"image_path": "http://a.b/c.png"}, "is a URL (http://a.b/c.png)"),
        ("train.json", {"image_path": "../../x.png"}, "lies outside the image root"),
        ("train.json", {"image_path": "/etc/hostname"}, "lies outside the image root"),
        ("meta.json", {"true_false": ...}, "field 'true_false': is missing"),
        ("meta.json", {"true_false": "yes"}, "field 'true_false': must be true or false"),
        ("meta.json", {"input": "Question: what?"}, "holds a question but no response"),
        ("meta.json", {"input": ""}, "field 'input': is empty"),
        ("meta.json", {"input": steps(1001)}, "field 'input': holds 1001 steps, more than 1000"),
        ("meta.json", {"input": "Q\n\n\ud83d"}, "field 'input': holds half of a surrogate pair"),
    ],
)  # fmt: skip
def test_a_bad_field_is_named(capsys, data, file, fields, expected):
    edit(data, file, 3, **fields)
    said = refused(capsys, data)
    assert f"{data / file}: record 3" in said and expected in said
    assert said.count("\n") == 1 and len(said) < 1000


def png(width: int, height: int) -> bytes:
    """A PNG header that promises width x height pixels, and next to no data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("empty", "0.png is empty"),
        ("truncated", "0.png cannot be read"),
        ("text", "0.png cannot be read"),
        ("strip", "0.png is a strip: 2100 pixels long and 10 wide"),
        ("bomb", "0.png is too large to be safe: 12000 x 10000 pixels"),
    ],
)
def test_a_broken_image_is_named_for_every_record_that_needs_it(capsys, data, kind, expected):
    image = data / "images" / "0.png"
    content = image.read_bytes()
    broken = {
        "empty": b"",
        "truncated": content[: len(content) // 2],
        "text": b"not an image",
        "bomb": png(12000, 10000),
    }
    if kind == "strip":
        with io.BytesIO() as buffer:
            Image.new("L", (10, 2100)).save(buffer, "PNG")
            broken["strip"] = buffer.getvalue()
    image.write_bytes(broken[kind])
    said = refused(capsys, data)
    assert expected in said
    assert f"{data / 'train.json'}: record 1: field 'image_path'" in said
    assert f"{data / 'meta.json'}: record 1: field 'image_path'" in said


@pytest.mark.parametrize(
    "content, expected",
    [
        (None, "No such file or directory"),
        ("", "holds no records"),
        ("[]", "holds no records"),
        ("[{", "not JSON"),
        ('{"input": "a"}\n{"input": ', "line 2: not JSON"),
        ('{\n"records": []\n}', "not a list of records"),
        ("17", "not a list of records"),
        ('["a", "b"]', 'record 1: must be an object, is "a"'),
        ('[{"accuracy": ' + "1" * 5000 + "}]", "record 1: not JSON: holds a number of more than"),
        ('[{}, {"a": ' + "[" * 10**5 + "]" * 10**5 + "}]", "record 2: not JSON: nested deeper"),
        ('{"a": 1}\n{"a": ' + "[" * 10**5, "line 2: not JSON: nested deeper than 100 levels"),
        (b"\xff\xfe\x00", "not UTF-8 text"),
    ],
)
def test_a_bad_file_is_named(capsys, data, content, expected):
    path = data / "train.json"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    said = refused(capsys, data)
    assert str(path) in said and expected in said


def test_a_frequent_problem_hides_no_other(capsys, data):
    records = [r | {"accuracy": 2} for r in json.loads((data / "train.json").read_text())] * 2
    records[-1] = records[-1] | {"add": 5, "accuracy": 0.5}
    for index, number in enumerate((7, 8, 8, 8, 9), start=20):
        records[index] = records[index] | {"accuracy": 1, "image_path": f"images/{number}.png"}
    (data / "train.json").write_text(json.dumps(records))
    lines = refused(capsys, data).splitlines()
    path = data / "train.json"
    out_of_bounds = len(records) - 6
    assert lines == [
        f"error: {path}: record 1: field 'accuracy': must lie in [0, 1], is 2",
        f"{path}: record 2: field 'accuracy': must lie in [0, 1], is 2",
        f"{path}: record 3: field 'accuracy': must lie in [0, 1], is 2",
        f"{path}: field 'accuracy': must lie in [0, 1], is …: {out_of_bounds - 3} more like these",
        *(
            f"{path}: record {record}: field 'image_path': {data}/images/{image}.png does not exist"
            for record, image in ((21, 7), (22, 8), (23, 8))
        ),
        f"{path}: field 'image_path': … does not exist: 2 more like these "
        "(3 different ones in all)",
        f"{path}: record {len(records)}: field 'add': must be text, is 5",
        f"{len(records)} problems of 3 kinds",
    ]


def test_problems_of_both_files_come_together(capsys, data):
    edit(data, "train.json", 1, accuracy=2)
    edit(data, "meta.json", 2, true_false=...)
    said = refused(capsys, data)
    assert "train.json: record 1" in said and "meta.json: record 2" in said


def test_one_domain_leaves_nothing_to_weigh(capsys, data):
    records = json.loads((data / "train.json").read_text())
    (data / "train.json").write_text(json.dumps([r | {"dataset": "map"} for r in records]))
    assert "reweighting has nothing to weigh" in refused(capsys, data)


def test_one_label_teaches_nothing(capsys, data):
    records = json.loads((data / "meta.json").read_text())
    (data / "meta.json").write_text(json.dumps([r | {"true_false": True} for r in records]))
    assert "every usable record is labelled true" in refused(capsys, data)


def test_bad_records_can_be_left_out(capsys, data, monkeypatch):
    edit(data, "train.json", 2, accuracy=3)
    (data / "images" / "1.png").unlink()
    flags = command(data, data.parent / "run", "--skip_bad_records", "--dry_run")
    assert program.main(flags) == 0
    printed = capsys.readouterr()
    assert "left out" in printed.err and "must lie in [0, 1], is 3" in printed.err
    records = json.loads((data / "train.json").read_text())
    usable = sum(r["image_path"] != "images/1.png" for r in records) - 1
    assert f"all {usable:>30}".split() == printed.out.splitlines()[4].split()


def test_every_kind_of_a_bad_record_that_is_left_out_is_told(capsys, data):
    edit(data, "train.json", 2, accuracy=3)
    edit(data, "train.json", 3, add="\ud83d")
    edit(data, "meta.json", 1, input="Q?")
    run = command(data, data.parent / "run", "--skip_bad_records", "--dry_run")
    assert program.main(run) == 0
    said = capsys.readouterr().err
    assert f"{data / 'train.json'}: left out 2 records with problems:" in said
    assert "record 2: field 'accuracy'" in said and "record 3: field 'add'" in said
    assert f"{data / 'meta.json'}: left out 1 record with problems:" in said
    assert "record 1: field 'input': holds a question but no response" in said


def test_text_problems_are_told_although_no_image_is_there_yet(capsys, data):
    shutil.rmtree(data / "images")
    edit(data, "train.json", 9, accuracy=3)
    edit(data, "meta.json", 5, true_false=None)
    said = refused(capsys, data)
    for file, text in (("train.json", "must lie in [0, 1]"), ("meta.json", "must be true or fal")):
        assert text in said
        assert said.count(f"{data / file}: record") == 3 + 1
        assert f"{data / file}: field 'image_path': … does not exist: " in said


def test_names_with_escape_sequences_reach_no_terminal(capsys, data):
    records = json.loads((data / "train.json").read_text())
    records = [record | {"dataset": "\x1b[2Jchart\nerror: "} for record in records]
    odd = data.parent / "\x1b[31m\u202e"
    data.rename(odd)
    (odd / "train.json").write_text(json.dumps(records))
    for more in ([], [records[0] | {"\x1b[1m": "\ud83d"}, records[0] | {"dataset": 7}]):
        (odd / "train.json").write_text(json.dumps(records + more))
        said = refused(capsys, odd)
        assert said.replace("\n", "").isprintable() and "\\x1b[31m\\u202e/train.json" in said
    assert program.main(command(odd, odd.parent / "run", "--baseline", "--dry_run",
                                "--skip_bad_records")) == 0  # fmt: skip
    printed = capsys.readouterr()
    assert "\\x1b[2Jchart error:" in printed.out and "\x1b" not in printed.out + printed.err


def test_rollouts_leave_bad_records_out_where_asked(capsys, data):
    edit(data, "train.json", 2, accuracy=3)
    edit(data, "train.json", 4, times=8, score="all")
    edit(data, "train.json", 5, times=8, score=9)
    conversations = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "+"}]
    edit(data, "train.json", 6, conversations=conversations, image="x.png")
    edit(data, "train.json", 7, times=8, score=8)
    kept, command = data / "kept.json", ["select", "--labelled", str(data / "train.json")]
    command += ["--output", str(kept), "--per_domain", "1000"]
    assert rollouts.main(command) == 2
    said = capsys.readouterr().err
    assert "record 2: field 'accuracy': must lie in [0, 1], is 3" in said
    assert "record 5: field 'score': must be a whole number from 0 to 'times'" in said
    assert "record 6: field 'conversations': holds labels, no accuracy" in said
    assert rollouts.main([*command, "--skip_bad_records"]) == 0
    assert "left out 4 records with problems:" in capsys.readouterr().err
    records = json.loads((data / "train.json").read_text())
    assert json.loads(kept.read_text()) == [records[0], records[2], *records[6:]]


def test_json_lines_with_every_line_separator_of_unicode(capsys, data):
    for file in ("train.json", "meta.json"):
        records = json.loads((data / file).read_text())
        records = [r | {"note": "\u2028 \u0085", "input": r["input"] + "\u2028"} for r in records]
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (data / file).write_text(lines, encoding="utf-8")
    assert program.main(command(data, data.parent / "run", "--dry_run")) == 0
    (data / "train.json").write_text(lines + "{}", encoding="utf-8")
    assert f"record {len(records) + 1}: field 'input': is missing" in refused(capsys, data)


def test_json_lines_and_unknown_keys_are_fine(capsys, data):
    for file in ("train.json", "meta.json"):
        records = json.loads((data / file).read_text())
        lines = [json.dumps(record | {"note": [1, 2]}) for record in records]
        (data / file).write_text("\n".join(lines) + "\n")
    assert program.main(command(data, data.parent / "run", "--dry_run")) == 0
    assert "train records by domain" in capsys.readouterr().out


def test_images_outside_the_root_and_urls_when_asked_for(capsys, data, monkeypatch):
    import http.server
    import threading

    outside = data.parent / "outside.png"

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(data))

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/images"
    edit(data, "train.json", 1, image_path=f"{url}/0.png")
    shutil.copy(data / "images" / "0.png", outside)
    edit(data, "train.json", 2, image_path="../outside.png")
    flags = command(data, data.parent / "run", "--allow_image_urls", "--allow_external_images")
    assert program.main([*flags, "--dry_run"]) == 0
    said = refused(capsys, data, "--allow_external_images")
    assert "record 1: field 'image_path': is a URL" in said and "see --allow_image_urls" in said
    said = refused(capsys, data, "--allow_image_urls")
    assert "record 2: field 'image_path': ../outside.png lies outside the image root" in said
    assert said.count("\n") == 1
    edit(data, "train.json", 1, image_path=f"{url}/missing.png")
    both = ("--allow_external_images", "--allow_image_urls")
    assert "cannot be read: 404" in refused(capsys, data, *both)
    server.shutdown()


def test_every_file_may_have_an_image_root_of_its_own(capsys, data):
    roots = {
        "train.json": "--image_root",
        "meta.json": "--meta_image_root",
        "candidates.json": "--eval_image_root",
    }
    candidates = write_candidates(data, candidates=["b", "c"], true_false=[True, False])
    flags = ["--eval_candidates", str(candidates)]
    for file, flag in roots.items():
        root = data.parent / f"images of {file}"
        shutil.copytree(data / "images", root / "images")
        flags += [flag, str(root)]
    shutil.rmtree(data / "images")
    assert program.main(command(data, data.parent / "run", *flags, "--dry_run")) == 0
    capsys.readouterr()
    for file in roots:
        images = data.parent / f"images of {file}" / "images"
        images.rename(data / "aside")
        said = refused(capsys, data, *flags)
        assert {other for other in roots if f"{data / other}: record" in said} == {file}
        (data / "aside").rename(images)
    assert "--meta_image_root nowhere is no directory" in refused(
        capsys, data, "--meta_image_root", "nowhere"
    )


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["--accuracy", "1"], "unrecognized arguments"),
        (["--precision", "int8"], "invalid choice"),
        (["--batch_size", "0"], "must be at least 1, is 0"),
        (["--lr", "0"], "must be above 0, is 0"),
        (["--lr", "nan"], "must be above 0, is nan"),
        (["--max_pixels", "100", "--min_pixels", "200"], "--min_pixels 200 is above --max_pixels"),
        (["--unroll_steps", "7"], "no upper step would ever be taken"),
        (["--device", "cuda:99"], "CUDA device 99 is not there"),
        (["--device", "abacus"], "is no device"),
        (["--local_rank", "1"], "means nothing with --device cpu"),
        (["--image_root", "/nowhere"], "is no directory"),
        (["--seed", "-1"], "--seed must lie in"),
        (["--strategy", "zero"], "invalid choice"),
    ],
)
def test_flags_that_cannot_work_are_refused(capsys, data, flags, expected):
    assert expected in refused(capsys, data, *flags)


def test_a_reward_model_that_cannot_be_opened(capsys, data, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said = refused(capsys, data, "--reward_model", str(data / "nowhere"))
    assert "error: --reward_model" in said and "nowhere" in said and "Traceback" not in said


def test_a_weights_path_that_cannot_be_written(capsys, data):
    (data.parent / "file").write_text("")
    said = refused(capsys, data, "--weights_path", str(data.parent / "file" / "run"))
    assert "cannot be written" in said and "is no directory" in said


def test_without_betty_the_command_that_installs_it_is_printed(capsys, data, monkeypatch):
    monkeypatch.setitem(sys.modules, "betty.problems", None)
    monkeypatch.setitem(sys.modules, "betty", None)
    said = refused(capsys, data)
    assert "pip install --no-deps --ignore-requires-python betty-ml==0.2.1" in said


@pytest.mark.skipif(not PUBLISHED_META.exists(), reason="the published meta set is not here")
def test_every_record_of_the_published_meta_set_is_accepted_or_refused():
    from reweighting.records.reader import RecordReader
    from reweighting.records.rows import meta_warnings, response_labels

    reader = RecordReader(str(PUBLISHED_META))
    samples = reader.samples(reader.meta_sample)
    assert len(samples) == 129 and len(reader.problems) == 371
    assert sum(len(sample.prompts) == 5 for sample in samples) == 128
    assert all("no response" in text for text in reader.all_problems())
    [warning] = meta_warnings(reader.name, response_labels(reader, reader.read()))
    assert "371 of 500 records hold no response" in warning
    assert "can only teach the weights that text is good" in warning


def test_resuming_with_other_data_or_arguments_is_refused(capsys, tmp_path):
    data = write_dataset(tmp_path / "data", questions=6)
    run = str(tmp_path / "run")
    short = ["--iteration_num", "2"]
    assert program.main(command(data, Path(run), *short)) == 0
    capsys.readouterr()
    assert program.main(command(data, Path(run), *short)) == 2
    assert "already holds a reward model: --resume continues" in capsys.readouterr().err
    assert program.main(command(data, Path(run), *short, "--resume", "--lr", "0.5")) == 2
    assert "--lr was 0.0001, is 0.5" in capsys.readouterr().err
    edit(data, "train.json", 1, accuracy=0.123)
    assert program.main(command(data, Path(run), *short, "--resume")) == 2
    assert "not those it was started with" in capsys.readouterr().err


def test_total_steps_end_at_the_last_epoch():
    from argparse import Namespace

    from reweighting.records.dataset import total_steps

    arguments = Namespace(
        iteration_num=100, batch_size=4, gradient_accumulation=2, max_epoch=3, processes=1
    )
    assert total_steps(arguments, units=40) == 15
    assert total_steps(arguments, units=4000) == 100


def test_more_kinds_of_problems_than_are_listed_are_counted(capsys, data):
    records = json.loads((data / "train.json").read_text()) * 2
    for number in range(25):
        records[number] = records[number] | {f"note {number}": "\ud83d"}
    (data / "train.json").write_text(json.dumps(records))
    lines = refused(capsys, data).splitlines()
    assert len(lines) == 21 and "record 20: field 'note 19'" in lines[19]
    assert lines[20] == "25 problems, 5 kinds not listed"


def test_questions_with_problems_are_left_out_where_asked(capsys, data):
    question = {"question": "Which?", "image_path": "images/0.png", "answer": "a", "dataset": "d"}
    path = data / "questions.json"
    path.write_text(json.dumps([question | {"answer": 7}, question | {"image_path": "data:,"}]))
    command = ["chains", "--questions", str(path), "--output", str(data / "c.json")]
    command += ["--image_root", str(data), "--model", "m", "--skip_bad_records"]
    assert rollouts.main(command) == 2
    said = capsys.readouterr().err
    assert "record 1: field 'answer': must be text, is 7" in said
    assert f"{path}: no usable record is left" in said
