"""From images to pixels, the one place for it: for checking records, for the model, for a server.

A *source* is anything that stands for an image: in records a path, an http(s) URL or a ``data:``
URI; from Python also the bytes of a file, a Pillow image, an array or a tensor.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
import os
import re
import stat
import sys
import threading
import time
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from .flags import MEGAPIXELS_FLAG

if TYPE_CHECKING:
    import torch

Source: TypeAlias = "str | Path | bytes | Image.Image | np.ndarray | torch.Tensor"

# What a prompt shows: nothing, one image, or several in this order.
Images: TypeAlias = "Source | list[Source] | tuple[Source, ...] | None"

MAX_ASPECT_RATIO = 200  # the limit of the Qwen2-VL image processor
MAX_FILE_BYTES = 2**29  # of an image file
MAX_BODY_BYTES = 2**26  # of an image at a URL or within a record
URL_SECONDS = 60  # for fetching an image as a whole
ACCEPTED = (
    "an image is a path, an http(s) URL, a data: URI, the bytes of a file, a PIL image, a uint8 "
    "array [H, W], [H, W, 3] or [H, W, 4], or a tensor [C, H, W], uint8 or floating within [0, 1]"
)
_SPECIAL_FILES = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a directory",
}
_GREY_SCALES = {"L;2": 85, "L;4": 17}  # by Pillow's names for the bit depths of a PNG
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of a TIFF
_DATA_URI = re.compile(
    r"data:(image/[\w.+-]{1,100})?(;[\w.+-]{1,100}=[\w.+-]{1,100}){0,8};base64,", re.IGNORECASE
)


def open_image(source: Source) -> Image.Image:
    """Open and fully decode an image, the first frame if there are several.

    Pillow's ``Image.MAX_IMAGE_PIXELS``, which :func:`allow_megapixels` sets, limits the pixels.

    Raises:
        OSError: the file is missing, empty, truncated, no image, not a regular file or larger than
            :data:`MAX_FILE_BYTES`; a URL gives more than :data:`MAX_BODY_BYTES` or takes longer
            than :data:`URL_SECONDS`.
        ValueError: an array or tensor has another shape, type or range than :data:`ACCEPTED` says;
            an image has no pixels; a ``data:`` URI is not base64.
        TypeError: ``source`` is none of the types that :data:`ACCEPTED` names.
        PIL.Image.DecompressionBombError: the image has more pixels than allowed.
    """
    if isinstance(source, Image.Image):
        image = source
    elif (array := _array(source)) is not None:
        return Image.fromarray(array)
    else:
        stream = _stream(source)
        try:
            image = Image.open(stream)
        except UnidentifiedImageError:
            if isinstance(stream, Path):
                raise
            raise OSError("holds no image that Pillow can read") from None
        except Image.DecompressionBombError:  # its message names neither size nor remedy
            raise _too_large("more than twice the pixels that are held for safe") from None
    width, height = image.size
    if not width * height:
        raise ValueError(f"a picture of {width} x {height} pixels: {ACCEPTED}")
    if Image.MAX_IMAGE_PIXELS and width * height > Image.MAX_IMAGE_PIXELS:
        # Up to twice its limit Pillow only warns; nobody means to train on such an image.
        raise _too_large(f"{width} x {height} pixels")
    _scale_transparent_colour(image)
    image.load()
    return image


def listed(images: Images) -> list[Source]:
    """The images of a prompt, in order."""
    if images is None:
        return []
    return list(images) if isinstance(images, (list, tuple)) else [images]


def allow_megapixels(megapixels: float) -> None:
    """Accept images of up to ``megapixels`` million pixels, in this process and its children."""
    Image.MAX_IMAGE_PIXELS = round(megapixels * 1e6)


def to_pixels(image: Image.Image) -> Image.Image:
    """An image in mode RGB as people see it, whatever its mode, bit depth and metadata.

    It is turned upright (EXIF orientation), transparency becomes white, and more than 8 bits are
    scaled to 8. An RGB image without such metadata is returned as it is.
    """
    upright = image
    # A broken EXIF block does not make the image unusable.
    with suppress(Exception):
        if image.getexif().get(0x0112, 1) != 1:  # the orientation
            upright = ImageOps.exif_transpose(image)
    if upright.mode == "F" or upright.mode.startswith("I"):
        upright = _eight_bits(upright, image)
    image = upright
    if image.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
    if not image.has_transparency_data:
        return image.convert("RGB") if image.mode != "RGB" else image
    image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return white


def load_pixels(source: Source) -> Image.Image:
    """The RGB image of ``source``; raises what :func:`open_image` raises."""
    return to_pixels(open_image(source))


def shrunk_size(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """``size``, width and height, scaled down so that the longest side is at most ``longest``.

    Rounding never makes the ratio of the sides exceed :data:`MAX_ASPECT_RATIO`.
    """
    if max(size) <= longest:
        return size
    scale = longest / max(size)
    return not_too_thin((int(size[0] * scale), int(size[1] * scale)))


def not_too_thin(size: tuple[int, int]) -> tuple[int, int]:
    """The smallest size that holds ``size`` and has a ratio of at most :data:`MAX_ASPECT_RATIO`."""
    least = math.ceil(max(size) / MAX_ASPECT_RATIO)
    return max(least, size[0]), max(least, size[1])


def content_key(pixels: Image.Image) -> str:
    """A key that equal images share, and no others."""
    head = f"{pixels.mode} {pixels.width} {pixels.height} ".encode()
    return hashlib.sha256(head + pixels.tobytes()).hexdigest()


def source_key(source: str | Path) -> str:
    """A key for what a path, URL or ``data:`` URI stands for; it changes when the file does."""
    source = str(source)
    if is_data_uri(source):
        return hashlib.sha256(source.encode()).hexdigest()
    with suppress(OSError, ValueError):  # a URL, or a path that cannot be opened either
        status = os.stat(source)
        return f"{source} {status.st_mtime_ns} {status.st_size}"
    return source


def data_url(image: Image.Image) -> str:
    """A ``data:`` URI of an image as a PNG, which loses nothing."""
    buffer = BytesIO()
    image.save(buffer, "png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def is_data_uri(source: str) -> bool:
    """Whether the text is a ``data:`` URI, which holds the image itself."""
    return source[:5].lower() == "data:"


def is_url(source: str) -> bool:
    """Whether the text is an http(s) URL."""
    return source.startswith(("http://", "https://"))


def source_name(source: str) -> str:
    """A source as messages name it: its path or URL, but never the image itself."""
    if is_data_uri(source):
        return f"the picture in the record (a data: URI of {len(source):,} characters)"
    return source


def image_problem(source: str) -> str | None:
    """What is wrong with the image that a record names, or None."""
    name = source_name(source)
    try:
        with open_image(source) as image:
            sides = sorted(to_pixels(image).size)
        if sides[1] > MAX_ASPECT_RATIO * sides[0]:
            return f"{name} is a strip: {sides[1]} pixels long and {sides[0]} wide"
    except FileNotFoundError:
        return f"{name} does not exist"
    except Image.DecompressionBombError as error:
        return f"{name} is too large to be safe: {error}"
    except Exception as error:  # Pillow's plugins raise whatever a broken file provokes
        size = os.path.getsize(source) if os.path.isfile(source) else None
        return f"{name} is empty" if size == 0 else f"{name} cannot be read: {error}"
    return None


def _too_large(pixels: str) -> Image.DecompressionBombError:
    bound = f"{Image.MAX_IMAGE_PIXELS / 1e6:.4g} million"
    return Image.DecompressionBombError(
        f"{pixels}, the bound is {bound}; see {MEGAPIXELS_FLAG}, in Python images.allow_megapixels"
    )


def _stream(source: Source) -> Path | BytesIO:
    """What Pillow can open: a regular file of limited size, or bytes."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return BytesIO(source)
    if not isinstance(source, (str, Path)):
        raise TypeError(f"{type(source).__name__}: {ACCEPTED}")
    text = str(source)
    if is_data_uri(text):
        return BytesIO(_decoded(text))
    if is_url(text):
        return BytesIO(_fetched(text))
    status = os.stat(source)
    if not stat.S_ISREG(status.st_mode):
        kind = _SPECIAL_FILES.get(stat.S_IFMT(status.st_mode), "something else")
        raise OSError(f"is {kind}, no regular file")
    if status.st_size > MAX_FILE_BYTES:
        raise OSError(f"holds {status.st_size:,} bytes, more than {MAX_FILE_BYTES:,}")
    return Path(source)


def _decoded(uri: str) -> bytes:
    head = _DATA_URI.match(uri)
    if not head:
        raise ValueError("a data: URI must begin with data:image/TYPE;base64,")
    if len(uri) > MAX_BODY_BYTES * 4 / 3 + head.end():
        raise ValueError(f"a data: URI of more than {MAX_BODY_BYTES:,} bytes")
    try:
        return base64.b64decode(uri[head.end() :], validate=True)
    except binascii.Error as error:
        raise ValueError(f"a data: URI that is not base64: {error}") from None


def _fetched(url: str) -> bytes:
    """The body at ``url``.

    A server may send byte by byte, and a name may resolve slowly, so the time is limited from
    outside; the thread that is left behind ends with the process.
    """
    found: list[bytes | Exception] = []
    thread = threading.Thread(target=lambda: found.append(_fetch(url)), daemon=True)
    thread.start()
    thread.join(URL_SECONDS)
    if not found:
        raise OSError(f"took longer than {URL_SECONDS} seconds")
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def _fetch(url: str) -> bytes | Exception:
    import requests  # a dependency of qwen-vl-utils; only URL images need it

    end, body = time.monotonic() + URL_SECONDS, BytesIO()
    try:
        with requests.get(url, timeout=URL_SECONDS, stream=True) as response:
            response.raise_for_status()
            for chunk in response.iter_content(2**16):
                body.write(chunk)
                if body.tell() > MAX_BODY_BYTES:
                    return OSError(f"sends more than {MAX_BODY_BYTES:,} bytes")
                if time.monotonic() > end:
                    break  # nobody waits any longer
    except Exception as error:
        return error
    return body.getvalue()


def _array(source: Source) -> np.ndarray | None:
    """An array or tensor as uint8 ``[H, W]``, ``[H, W, 3]`` or ``[H, W, 4]``, None for the rest."""
    torch = sys.modules.get("torch")  # without it there are no tensors
    if torch is not None and isinstance(source, torch.Tensor):
        try:
            array = _tensor_array(source)
        except (
            RuntimeError,
            TypeError,
        ):  # for a type, layout or device that torch does not support
            held = f"{source.dtype}, {source.layout}, on {source.device}, {list(source.shape)}"
            raise ValueError(f"Tensor of {held}: {ACCEPTED}") from None
    elif isinstance(source, np.ndarray):
        array = source
    else:
        return None
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    channels = array.shape[2:] if array.ndim in (2, 3) else None
    if array.dtype != np.uint8 or not array.size or channels not in ((), (3,), (4,)):
        shape = list(source.shape)
        raise ValueError(f"{type(source).__name__} of {source.dtype}, {shape}: {ACCEPTED}")
    return np.ascontiguousarray(array)


def _tensor_array(source: torch.Tensor) -> np.ndarray:
    array = source.detach().cpu()
    if array.is_floating_point():
        array = array.float()
        if not (array.isfinite().all() and array.min() >= 0 and array.max() <= 1):
            raise ValueError(f"a tensor with values outside [0, 1]: {ACCEPTED}")
        array = (array * 255).round().byte()
    return (array.movedim(0, -1) if array.dim() == 3 else array).numpy()


def _scale_transparent_colour(image: Image.Image) -> None:
    """Scale the transparent colour of a PNG, before it is decoded, like its pixels.

    Pillow scales 2 and 4 bits to 8 and cuts 16-bit colours down to 8 bits, but leaves the
    transparent colour as the file has it.

    Raises:
        OSError: after the cut, the transparent colour cannot be told from its neighbours.
    """
    clear, tiles = image.info.get("transparency"), getattr(image, "tile", None)
    if image.format != "PNG" or clear is None or not tiles:
        return
    raw_mode = tiles[0][3]
    if raw_mode == "RGB;16B":
        raise OSError(
            "has 16 bits a colour and a transparent one, of which Pillow keeps 8; save it with 8 "
            "bits or with an alpha channel"
        )
    if raw_mode in _GREY_SCALES:
        image.info["transparency"] = clear * _GREY_SCALES[raw_mode]


def _eight_bits(image: Image.Image, opened: Image.Image) -> Image.Image:
    """An image of more than 8 bits per pixel (``I;16``, ``I``, ``F``) in mode L, or in mode LA for
    a PNG with a transparent grey.

    16 bits have the range 0 to 65535, or that of the number of bits that a TIFF states. For ``I``
    and ``F`` no format says what is white: values within [0, 1] (``F`` only), [0, 255] or
    [0, 65535] are scaled from that range, others from their smallest to their largest value. A PNG
    in mode ``I`` has 16 bits. A TIFF may say that its smallest value is white.

    Args:
        opened: the image as opened, with its format and tags.
    """
    tags = getattr(opened, "tag_v2", {})
    pixels = np.asarray(image)
    if image.mode == "I" and tags.get(_BITS) == (32,) and tags.get(_SAMPLE_FORMAT, (1,)) == (1,):
        pixels = pixels.view(np.uint32)  # Pillow takes them for signed
    values = np.nan_to_num(pixels.astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and opened.format == "PNG")
    full = 2.0 ** tags.get(_BITS, (16,))[0] - 1
    if sixteen and low >= 0 and high <= full:
        high = full
    elif image.mode == "F" and low >= 0 and high <= 1:
        high = 1.0
    elif low >= 0 and high <= 65535:
        high = 255.0 if high <= 255 else 65535.0
    else:
        values -= low
        high = high - low or 1.0
    levels = np.round(values * (255 / high)).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == 0:
        levels = 255 - levels
    grey = Image.fromarray(levels)
    if isinstance(clear := opened.info.get("transparency"), int):
        grey.putalpha(Image.fromarray(np.where(pixels == clear, 0, 255).astype(np.uint8)))
    return grey
