"""The one place where an image file becomes pixels."""

from __future__ import annotations

import os
import warnings
from io import BytesIO

from PIL import Image

MAX_ASPECT_RATIO = 200  # of the Qwen2-VL image processor


def open_image(source: str) -> Image.Image:
    """Open and fully decode an image from a path or an http(s) URL.

    Raises:
        OSError: the file is missing, empty, truncated or no image.
        PIL.Image.DecompressionBombError: it unpacks to more pixels than Pillow holds for safe.
    """
    if source.startswith(("http://", "https://")):
        import requests  # a dependency of qwen-vl-utils; only URL images need it

        response = requests.get(source, timeout=30)
        response.raise_for_status()
        image = Image.open(BytesIO(response.content))
    else:
        image = Image.open(source)
    width, height = image.size
    if Image.MAX_IMAGE_PIXELS and width * height > Image.MAX_IMAGE_PIXELS:
        # Pillow only warns up to twice its limit; training on such an image is never meant.
        raise Image.DecompressionBombError(f"{width} x {height} pixels")
    image.load()
    return image


def image_problem(path: str) -> str | None:
    """What is wrong with an image as a record names it, or None."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open_image(path) as image:
                sides = sorted(image.size)
        if sides[1] > MAX_ASPECT_RATIO * sides[0]:
            return f"{path} is a strip: {sides[1]} pixels long and {sides[0]} wide"
    except FileNotFoundError:
        return f"{path} does not exist"
    except Image.DecompressionBombError as error:
        return f"{path} is too large to be safe: {error}"
    except Exception as error:  # Pillow's plugins raise whatever a broken file provokes
        size = os.path.getsize(path) if os.path.isfile(path) else None
        return f"{path} is empty" if size == 0 else f"{path} cannot be read: {error}"
    return None
