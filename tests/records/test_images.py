"""From whatever stands for an image to the pixels that models get: files, modes, sizes, sources."""

from __future__ import annotations

import base64
import json
import os
import socket
import struct
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

import main as program
from reweighting.records import images
from reweighting.records.images import (
    MAX_ASPECT_RATIO,
    image_problem,
    load_pixels,
    open_image,
    shrunk_size,
    to_pixels,
)
from reweighting.records.steps import Prompt
from reweighting.reward_model.encoder import PromptEncoder
from reweighting.rollouts import __main__ as rollouts
from reweighting.rollouts.reasoner import prepare_image
from reweighting.selection import __main__ as selection
from tests.conftest import command

WHITE = [255, 255, 255]


@pytest.fixture(autouse=True)
def pillows_bound(monkeypatch):
    """Commands move it for their whole process."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)


@pytest.fixture(scope="module")
def encoder(reward_model) -> PromptEncoder:
    return PromptEncoder(reward_model.encoder.processor)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def sent(path, max_size: int = 512) -> np.ndarray:
    """The pixels that a rollout's image holds."""
    return np.asarray(Image.open(BytesIO(prepare_image(str(path), max_size).body)).convert("RGB"))


# ---- modes, depths and metadata


def test_16_bits_become_8_in_all_that_sees_pixels(tmp_path, encoder):
    values = np.array([[0, 400], [30_000, 60_000]], dtype=np.uint16).repeat(28, 0).repeat(28, 1)
    Image.fromarray(values).save(tmp_path / "deep.png")
    Image.fromarray(values).save(tmp_path / "deep.tiff")
    expected = np.round(values / 257).astype(np.uint8)[..., None].repeat(3, -1)
    assert expected.max() < 255
    for name in ("deep.png", "deep.tiff"):
        assert (np.asarray(load_pixels(tmp_path / name)) == expected).all()
        assert (sent(tmp_path / name) == expected).all()
    theirs = encoder.encode_image(Image.fromarray(expected)).inputs["pixel_values"]
    ours = encoder.encode_image(tmp_path / "deep.png").inputs["pixel_values"]
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "values, expected",
    [
        (np.array([[0, 128, 255]], dtype=np.int32), [0, 128, 255]),
        (np.array([[0, 257, 65535]], dtype=np.int32), [0, 1, 255]),
        (np.array([[-1000, 0, 1000]], dtype=np.int32), [0, 128, 255]),
        (np.array([[0, 0.5, 1]], dtype=np.float32), [0, 128, 255]),
        (np.array([[0, 100, 255]], dtype=np.float32), [0, 100, 255]),
        (np.array([[0, 1e6, 4e6]], dtype=np.float32), [0, 64, 255]),
        (np.array([[0, np.nan, 1]], dtype=np.float32), [0, 0, 255]),
        (np.array([[-3, -3, -3]], dtype=np.float32), [0, 0, 0]),
    ],
)
def test_ranges_that_no_format_names(tmp_path, values, expected):
    Image.fromarray(values).save(tmp_path / "values.tiff")
    found = np.asarray(load_pixels(tmp_path / "values.tiff"))
    assert found.dtype == np.uint8 and found[0, :, 0].tolist() == expected


def png(depth: int, colour: int, row: bytes, clear: bytes) -> bytes:
    """A PNG of 16 equal rows of 16 pixels, with a tRNS chunk; Pillow writes not all of them."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    head = struct.pack(">IIBBBBB", 16, 16, depth, colour, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress((b"\0" + row) * 16))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"tRNS", clear) + body) + chunk(
        b"IEND", b""
    )


@pytest.mark.parametrize(
    "depth, clear, row, seen",
    [
        (1, 0, b"\x00\xff", [255, 255]),
        (1, 1, b"\xff\x00", [255, 0]),
        (2, 1, b"\x55\x55\xaa\xaa", [255, 170]),
        (4, 5, b"\x55" * 4 + b"\x33" * 4, [255, 51]),
        (8, 7, b"\7" * 8 + b"\x64" * 8, [255, 100]),
        (16, 0, struct.pack(">16H", *[0] * 8, *[25_700] * 8), [255, 100]),
        (16, 300, struct.pack(">16H", *[300] * 8, *[257] * 8), [255, 1]),
    ],
)
def test_a_transparent_grey_shows_white_at_every_depth(tmp_path, depth, clear, row, seen):
    path = tmp_path / "grey.png"
    path.write_bytes(png(depth, 0, row, struct.pack(">H", clear)))
    pixels = np.asarray(load_pixels(path))
    assert pixels[3, [0, -1], 0].tolist() == seen
    opened = Image.open(path)
    for _ in range(2):  # a picture given twice is not scaled twice
        assert (np.asarray(load_pixels(opened)) == pixels).all()


def test_a_transparent_colour_of_16_bits_cannot_be_told(tmp_path):
    """Pillow keeps 8 of them, by which opaque neighbours look the same."""
    row = struct.pack(">48H", *[1000, 2000, 3000] * 8, *[25_700] * 24)
    (tmp_path / "a.png").write_bytes(png(16, 2, row, struct.pack(">3H", 1000, 2000, 3000)))
    assert "has 16 bits a colour and a transparent one" in image_problem(str(tmp_path / "a.png"))
    (tmp_path / "b.png").write_bytes(png(8, 2, b"abc" * 8 + b"ddd" * 8, b"\0a\0b\0c"))
    assert np.asarray(load_pixels(tmp_path / "b.png"))[3, [0, -1]].tolist() == [WHITE, [100] * 3]


def tiff(body: bytes, bits: int, photometric: int, sample_format: int = 1) -> bytes:
    """A TIFF of 16 by 16 grey pixels; Pillow writes neither all depths nor both directions."""
    tags = [(256, 16), (257, 16), (258, bits), (259, 1), (262, photometric), (273, 8 + 2 + 120 + 4)]
    tags += [(277, 1), (278, 16), (279, len(body)), (339, sample_format)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + body


@pytest.mark.parametrize(
    "bits, sample_format, row",
    [
        (8, 1, bytes([0] * 8 + [255] * 8)),
        (12, 1, bytes(12) + b"\xff" * 12),
        (16, 1, struct.pack("<16H", *[0] * 8, *[65_535] * 8)),
        (32, 1, struct.pack("<16I", *[0] * 8, *[2**32 - 1] * 8)),
        (32, 2, struct.pack("<16i", *[-5] * 8, *[2**31 - 1] * 8)),
        (32, 3, struct.pack("<16f", *[0] * 8, *[1] * 8)),
    ],
)
def test_a_tiff_says_which_end_of_its_values_is_white(tmp_path, bits, sample_format, row):
    read = 0
    for photometric, seen in ((1, [0, 255]), (0, [255, 0])):
        path = tmp_path / f"{photometric}.tiff"
        path.write_bytes(tiff(row * 16, bits, photometric, sample_format))
        problem = image_problem(str(path))
        assert problem is None or "cannot identify" in problem  # Pillow reads not all of them
        if problem is None:
            assert np.asarray(load_pixels(path))[3, [0, -1], 0].tolist() == seen
            read += 1
    assert read


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_stand_upright(tmp_path, orientation):
    """A scene with a bright corner at the top left, stored as a camera held otherwise would."""
    upright = np.zeros((56, 84, 3), dtype=np.uint8)
    upright[:28, :28] = 255
    turned = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # how the stored picture differs
    stored = Image.fromarray(upright)
    if orientation in turned:
        stored = stored.transpose(Image.Transpose(turned[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "photo.jpg", quality=100, subsampling=0, exif=exif)
    for found in (np.asarray(load_pixels(tmp_path / "photo.jpg")), sent(tmp_path / "photo.jpg")):
        assert found.shape == upright.shape
        assert np.abs(found.astype(int) - upright).max() < 30


def test_a_broken_exif_block_does_not_spoil_a_picture(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(
        encoded(Image.fromarray(noise(28, 28)), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff1234")
    )
    assert image_problem(str(tmp_path / "photo.jpg")) is None


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P", "L with a colour", "RGB with a colour"])
@pytest.mark.parametrize("side", [84, 1000])
def test_what_is_transparent_shows_white_at_every_size(tmp_path, encoder, mode, side):
    """The left half is see-through and black beneath."""
    path = tmp_path / "see-through.png"
    clear = np.arange(side) < side // 2
    gray = np.where(clear, 0, 100).astype(np.uint8)[None].repeat(side, 0)
    alpha = np.where(clear, 0, 255).astype(np.uint8)[None].repeat(side, 0)
    if mode == "LA":
        Image.merge("LA", (Image.fromarray(gray), Image.fromarray(alpha))).save(path)
    elif mode == "RGBA":
        Image.merge("RGBA", [*[Image.fromarray(gray)] * 3, Image.fromarray(alpha)]).save(path)
    elif mode == "P":
        picture = Image.fromarray((gray > 0).astype(np.uint8)).convert("P")
        picture.putpalette([0, 0, 0, 100, 100, 100])
        picture.save(path, transparency=0)
    elif mode.startswith("L"):
        Image.fromarray(gray).save(path, transparency=0)
    else:
        Image.fromarray(gray).convert("RGB").save(path, transparency=(0, 0, 0))
    pixels = load_pixels(path)
    assert pixels.mode == "RGB"
    assert np.asarray(pixels)[side // 2, [5, -5]].tolist() == [WHITE, [100] * 3]
    assert sent(path)[40, [5, -5]].tolist() == [WHITE, [100] * 3]
    plain = Image.fromarray(np.where(clear, 255, 100).astype(np.uint8)[None].repeat(side, 0))
    ours, theirs = (encoder.encode_image(x).inputs["pixel_values"] for x in (path, plain))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LAB", "HSV"])
def test_usual_modes_keep_their_colours(tmp_path, mode):
    if mode == "LAB":  # L = 53, a = 80, b = 67 is pure red; they are stored from -128 on
        picture = Image.new("LAB", (28, 28), (136, 208, 195))
        picture.save(tmp_path / "picture.tiff")
        found = np.asarray(load_pixels(tmp_path / "picture.tiff"))[0, 0].tolist()
        assert found[0] > 240 and max(found[1:]) < 25
        return
    red = Image.new("RGB", (28, 28), "red").convert(mode)
    pixels = to_pixels(red)
    assert pixels.mode == "RGB" and pixels.size == (28, 28)
    found = np.asarray(pixels)[3, 4].tolist()
    assert found[0] > 240 if mode not in ("1", "L") else len(set(found)) == 1


def test_of_several_frames_the_first_is_taken(tmp_path):
    frames = [Image.new("RGB", (28, 28), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "frames.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "frames.tiff", save_all=True, append_images=frames[1:])
    for name in ("frames.gif", "frames.tiff"):
        assert load_pixels(tmp_path / name).getpixel((5, 5)) == (255, 0, 0)


def test_plain_pictures_are_left_alone():
    picture = Image.fromarray(noise(30, 40))
    assert to_pixels(picture) is picture


# ---- sizes


@pytest.mark.parametrize("longest", [28, 250, 512, 1000])
def test_a_strip_that_passes_the_check_passes_the_processor(longest):
    for width in range(1, 40):
        for length in range(width, MAX_ASPECT_RATIO * width + 1, 7):
            small = shrunk_size((length, width), longest)
            assert max(small) <= max(longest, 1) and max(small) <= MAX_ASPECT_RATIO * min(small)
            assert shrunk_size((width, length), longest) == small[::-1]
    assert shrunk_size((1000, 600), 512) == (512, 307)  # rounded down, as ever


@pytest.mark.parametrize("size", [(6000, 31), (31, 6000), (1500, 9), (760, 4), (150, 1)])
def test_the_check_sees_what_the_model_gets(tmp_path, encoder, size):
    Image.new("RGB", size, "white").save(tmp_path / "strip.png")
    assert image_problem(str(tmp_path / "strip.png")) is None
    assert encoder.encode_image(tmp_path / "strip.png").inputs["image_grid_thw"].numel() == 3
    for max_size in (512, 250):
        height, width, _ = sent(tmp_path / "strip.png", max_size).shape
        assert max(height, width) <= MAX_ASPECT_RATIO * min(height, width)
    Image.new("RGB", (6000, 29)).save(tmp_path / "strip.png")
    assert "is a strip: 6000 pixels long" in image_problem(str(tmp_path / "strip.png"))


# ---- what is no image file, or too much of one


@pytest.mark.parametrize("kind", ["FIFO", "socket", "directory", "device"])
def test_special_files_are_refused_at_once(tmp_path, kind):
    path = tmp_path / "special"
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    start = time.monotonic()
    assert f"is a {kind}, no regular file" in image_problem(str(path))
    assert time.monotonic() - start < 1


def test_a_file_of_too_many_bytes_is_refused(tmp_path):
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(images.MAX_FILE_BYTES + 1)  # no byte of it is on the disk
    assert "holds 536,870,913 bytes, more than" in image_problem(str(tmp_path / "huge.png"))


@pytest.fixture
def server():
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            try:
                if self.path == "/endless":
                    while True:
                        self.wfile.write(bytes(2**20))
                if self.path == "/drip":
                    while True:
                        self.wfile.write(b"x")
                        time.sleep(0.05)
                self.wfile.write(encoded(Image.fromarray(noise(28, 28))))
            except OSError:
                pass  # no one listens any more

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_url_gives_so_many_bytes_in_so_much_time(server, monkeypatch):
    assert (np.asarray(load_pixels(f"{server}/image")) == noise(28, 28)).all()
    monkeypatch.setattr(images, "MAX_BODY_BYTES", 2**22)
    assert "sends more than 4,194,304 bytes" in image_problem(f"{server}/endless")
    monkeypatch.setattr(images, "URL_SECONDS", 0.5)
    start = time.monotonic()
    assert "took longer than 0.5 seconds" in image_problem(f"{server}/drip")
    assert time.monotonic() - start < 3


def test_large_scans_are_let_in_when_asked_for(dataset, tmp_path, capsys):
    """By all three commands, and in no other case."""
    Image.new("1", (1200, 1000)).save(tmp_path / "scan.png")
    record = {"question": "Q?", "image_path": "scan.png", "answer": "A", "dataset": "d"}
    record["candidates"] = ["Step 1: x.\nFinal answer: A"]
    (tmp_path / "test.json").write_text(json.dumps([record]))
    for name in ("train.json", "meta.json"):
        content = json.loads((dataset / name).read_text())
        content[0]["image_path"] = str(tmp_path / "scan.png")
        (tmp_path / name).write_text(json.dumps(content))
    train = command(dataset, tmp_path / "run", "--dry_run", "--allow_external_images")
    train += ["--train_json_file", str(tmp_path / "train.json")]
    train += ["--meta_json_file", str(tmp_path / "meta.json")]
    run = tmp_path / "finished"
    assert program.main(command(dataset, run, "--iteration_num", "2", "--save_every", "2")) == 0
    select = ["--weights_path", str(run), "--candidates", str(tmp_path / "test.json")]
    select += ["--output_dir", str(tmp_path / "out"), "--image_root", str(tmp_path)]
    select += ["--device", "cpu"]
    chains = ["chains", "--questions", str(tmp_path / "test.json"), "--image_root", str(tmp_path)]
    chains += ["--output", str(tmp_path / "chains.json"), "--model", "x", "--max_retries", "0"]
    chains += ["--base_url", "http://127.0.0.1:9/v1", "--concurrency", "1"]
    flag = images.MEGAPIXELS_FLAG
    capsys.readouterr()
    for main, flags in ((program.main, train), (selection.main, select), (rollouts.main, chains)):
        assert main([*flags, flag, "1.1"]) == 2
        said = capsys.readouterr().err
        assert "scan.png is too large to be safe: 1200 x 1000 pixels, the bound is 1.1 m" in said
        assert f"see {flag}, in Python images.allow_megapixels" in said
        assert main([*flags, flag, "1.3"]) != 2
        assert "too large" not in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [110, 1000])
def test_what_is_too_large_says_the_bound_and_the_remedy(tmp_path, side):
    """Pillow itself stops at twice its bound, with words of its own."""
    images.allow_megapixels(0.01)
    Image.new("1", (side, side)).save(tmp_path / "scan.png")
    with pytest.raises(Image.DecompressionBombError) as error:
        load_pixels(tmp_path / "scan.png")
    assert "the bound is 0.01 million; see --max_image_megapixels" in str(error.value)
    assert "images.allow_megapixels" in str(error.value)
    images.allow_megapixels(1.1)
    assert load_pixels(tmp_path / "scan.png").size == (side, side)


# ---- other sources than files


def test_data_uris_are_images_and_are_never_printed(dataset, tmp_path, capsys):
    body = encoded(Image.fromarray(noise(84, 84)))
    uri = "data:image/png;base64," + base64.b64encode(body).decode()
    assert (np.asarray(load_pixels(uri)) == noise(84, 84)).all()
    for name in ("train.json", "meta.json"):
        records = json.loads((dataset / name).read_text())
        records[0]["image_path"] = uri
        (tmp_path / name).write_text(json.dumps(records))
    flags = ["--train_json_file", str(tmp_path / "train.json")]
    flags += ["--meta_json_file", str(tmp_path / "meta.json")]
    assert program.main(command(dataset, tmp_path / "run", *flags, "--iteration_num", "2")) == 0
    capsys.readouterr()

    for broken, expected in (
        (uri[:-7], "cannot be read"),
        (uri[:1000], "cannot be read"),
        ("data:text/plain,hello", "must begin with data:image/TYPE;base64,"),
        (uri.replace(",", ",*"), "is not base64"),
    ):
        records[0]["image_path"] = broken
        (tmp_path / "meta.json").write_text(json.dumps(records))
        assert program.main(command(dataset, tmp_path / "next", *flags, "--dry_run")) == 2
        said = capsys.readouterr().err
        assert "record 1: field 'image_path': the picture in the record" in said
        assert expected in said and len(said) < 1000


def test_a_data_uri_is_bounded(monkeypatch):
    monkeypatch.setattr(images, "MAX_BODY_BYTES", 3000)
    assert "more than 3,000 bytes" in image_problem("data:image/png;base64," + "A" * 5000)


def test_sources_of_python_give_the_pixels_of_the_file(tmp_path):
    array = noise(56, 84)
    path = tmp_path / "picture.png"
    Image.fromarray(array).save(path)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    sources = [path, str(path), path.read_bytes(), Image.open(path), array, tensor, tensor / 255]
    for source in sources:
        assert (np.asarray(load_pixels(source)) == array).all()
    few_bits = torch.full((3, 4, 4), 0.5).to(torch.float8_e4m3fn)
    assert load_pixels(few_bits).getpixel((0, 0)) == (128, 128, 128)
    gray = array[..., 0]
    for source in (gray, gray[..., None], torch.from_numpy(gray)[None]):
        assert (np.asarray(load_pixels(source)) == gray[..., None]).all()


@pytest.mark.parametrize(
    "source, error",
    [
        (None, TypeError),
        (7, TypeError),
        (["a.png"], TypeError),
        (np.zeros((28, 28, 3)), ValueError),
        (np.zeros((3, 28, 28), dtype=np.uint8), ValueError),
        (np.zeros((0, 28, 3), dtype=np.uint8), ValueError),
        (torch.full((3, 28, 28), 255.0), ValueError),
        (torch.zeros(1, 3, 28, 28), ValueError),
        (torch.zeros(3, 28, 28, device="meta"), ValueError),
        (torch.zeros(3, 28, 28, dtype=torch.uint8, device="meta"), ValueError),
        (torch.zeros(3, 28, 28).to_sparse(), ValueError),
        (torch.zeros(3, 0, 28), ValueError),
        (torch.full((3, 28, 28), 9.0).to(torch.float8_e4m3fn), ValueError),
        (Image.new("RGB", (0, 10)), ValueError),
    ],
)
def test_what_is_no_image_is_told_what_is(source, error):
    with pytest.raises(error, match="an image is a path, an http"):
        open_image(source)


def test_bytes_that_are_no_image_are_named_as_such():
    with pytest.raises(OSError, match="holds no image that Pillow can read"):
        open_image(b"not an image")


# ---- keys


def test_pictures_in_memory_are_known_by_their_content(encoder):
    """Temporaries follow each other in one place of the memory."""

    def key(colour) -> str:
        return encoder.encode(Image.new("RGB", (28, 28), colour), [Prompt("Q")]).image_key

    assert len({key((number, 0, 0)) for number in range(60)}) == 60
    assert key("red") == key((255, 0, 0))


def test_a_file_that_changes_is_read_again(tmp_path, reward_model):
    encoder = PromptEncoder(reward_model.encoder.processor, cache_bytes=2**20)
    path = tmp_path / "picture.png"
    Image.fromarray(noise(28, 28)).save(path)
    before, old = encoder.encode_image(path), prepare_image(str(path), 512).digest
    assert encoder.encode_image(path) is before
    Image.fromarray(noise(28, 28, seed=1)).save(path)
    os.utime(path, ns=(1, 1))
    after = encoder.encode_image(path)
    assert not torch.equal(before.inputs["pixel_values"], after.inputs["pixel_values"])
    assert prepare_image(str(path), 512).digest != old
