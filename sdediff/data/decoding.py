"""One PNG or JPEG to pixels: as it is, or cropped and resized to a square.

Nothing is done to an image that was not asked for: what has more than 8 bits, several frames, transparency or other colours is refused.
"""

import io
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from sdediff.data.errors import DAMAGED, DataError, first_line

PICTURES = (".png", ".jpg", ".jpeg")
_GREY, _COLOUR = ("1", "L"), ("P", "RGB", "RGBA")
_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height


class Header(NamedTuple):
    """What is known of an image before it is unpacked: channels (1 or 3), height and width as it is shown."""

    channels: int
    height: int
    width: int


def opened(file: BinaryIO, name: str | Path) -> Image.Image:
    """The image of which nothing but the header is read yet. Raises DataError when it is none, or one that is never taken."""
    try:
        begin = file.read(25)
        file.seek(0)
        image = Image.open(file, formats=("PNG", "JPEG"))
        frames = int(getattr(image, "n_frames", 1)) if image.format == "PNG" else 1
    except DAMAGED as e:
        raise DataError(f"{name} cannot be read as a PNG or JPEG ({first_line(e)}). Copy it again, or convert it.") from e
    if frames > 1:
        raise DataError(f"{name} is animated ({frames} frames). Expected one image: save its frames as files of their own.")
    if image.format == "PNG" and begin[24] == 16:
        raise DataError(f"{name} has 16 bits a channel. Expected 8: give such images as floats in an .npz.")
    if image.mode not in (*_GREY, "LA", "PA", *_COLOUR):
        raise DataError(f"{name} has the colours {image.mode}. Expected grey or RGB: convert it first.")
    return image


def header(file: BinaryIO, name: str | Path) -> Header:
    """Channels and size of an image. Raises DataError as `opened` does."""
    with opened(file, name) as image:
        width, height = image.size
        try:
            known = image.format != "PNG" or "exif" in image.info  # asked for more, a PNG is unpacked to its end
            turned = known and image.getexif().get(0x0112) in _TURNED
        except DAMAGED:  # PIL's own way to turn an image leaves it as it is then
            turned = False
        if turned:
            width, height = height, width
        return Header(1 if image.mode in _GREY else 3, height, width)


def plain(image: Image.Image, name: str | Path) -> Image.Image:
    """The image unpacked and upright, mode L or RGB. Raises DataError when it is damaged, transparent or of other colours."""
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
    except DAMAGED as e:
        raise DataError(f"{name} cannot be read as a PNG or JPEG ({first_line(e)}). Copy it again, or convert it.") from e
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            raise DataError(f"{name} is transparent in places. Lay it on a background first: the model knows no transparency.")
    return image.convert("L" if image.mode in _GREY else "RGB")


def decoded(raw: bytes, name: str | Path, size: int | None = None, channels: int | None = None) -> np.ndarray:
    """uint8 (c, h, w) of a file's bytes; with size cropped and resized to a square, with channels made grey (1) or colour (3)."""
    with opened(io.BytesIO(raw), name) as image:
        image = plain(image, name)
    if channels is not None:
        image = image.convert("L" if channels == 1 else "RGB")
    array = np.asarray(image if size is None else cropped(image, size))
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def cropped(image: Image.Image, size: int) -> Image.Image:
    """The central square, size x size pixels, as ADM prepares its training images.

    The image is halved by a box filter (the mean of the pixels below) while its short side is at least 2 size, so that nothing aliases,
    then scaled by a cubic filter until the short side is `size`, then the middle is cut out. Smaller images are enlarged.
    Source: Dhariwal & Nichol 2021, Diffusion Models Beat GANs on Image Synthesis.
    """
    if image.size == (size, size):
        return image
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))
