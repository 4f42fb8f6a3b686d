"""One encoded picture as an array: what every format of picture files shares."""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageOps
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile

from trigflow.data.formats.background import Background
from trigflow.system.errors import UserError

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".avif"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
MOST_PIXELS = 2**26  # of one picture: a file of a kilobyte can claim to hold more than the memory does
MOST_BYTES = 2**28  # of one file within an archive, uncompressed

# Of Pillow: none that starts another program, as EPS does.
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "AVIF", "PPM")
_PNG_END = b"IEND\xaeB`\x82"  # type and checksum of the last chunk
_GREY = ("L", "1", "LA")
_COLOURS = ("RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr")
# What Pillow and numpy raise for a picture or an array that is damaged or foreign.
_DAMAGE = (
    *(OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, MemoryError, ArithmeticError),
    struct.error,
)


class DamagedPicture(UserError):
    """One picture of many cannot be used; `trigflow data prepare --skip-damaged` leaves it out."""


def decoded(content: bytes, where: str, background: Background | None = None) -> np.ndarray:
    """The pixels of an encoded picture, upright; palettes become RGB, transparent pixels get a background.

    Args:
        content: of a file of one of _FORMATS, whatever its name; of several frames the first is taken.
        where: file and name, for the error.
        background: of transparent pixels, which counts the pictures that have some (default: white).

    Returns:
        (1 or 3, H, W) uint8.

    Raises:
        DamagedPicture: damaged, foreign, of more than MOST_PIXELS pixels or of more than 8 bits a channel (Pillow would
            cut them down to 8 unasked).
    """
    with _damage_told(where), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of EXIF data
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return checked(_pixels(content, where, background or Background()), where)


@contextlib.contextmanager
def _damage_told(where: str) -> Iterator[None]:
    """Whatever Pillow and numpy raise, as one line."""
    try:
        yield
    except UserError:  # is a ValueError
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DamagedPicture(f"{where} claims more than {MOST_PIXELS} pixels: make it smaller") from None
    except _DAMAGE as error:
        raise DamagedPicture(f"{where} is damaged or no image ({type(error).__name__})") from None


def _pixels(content: bytes, where: str, background: Background) -> np.ndarray:
    with Image.open(io.BytesIO(content), formats=_FORMATS) as picture:  # reads no more than the header
        if picture.width * picture.height > MOST_PIXELS:
            raise DamagedPicture(
                f"{where} claims {picture.width}x{picture.height} pixels, more than {MOST_PIXELS}: make it smaller"
            )
        # Pillow does not ask for the end, if all pixels are there.
        if picture.format == "PNG" and _PNG_END not in content:
            raise DamagedPicture(f"{where} is damaged or no image (a PNG without its end)")
        if _bits(picture, content) > 8 or picture.mode not in (*_GREY, *_COLOURS):
            raise DamagedPicture(f"{where} has more than 8 bits a channel: convert it to 8 bits")
        return _channels(_upright(picture), background)


def _bits(picture: Image.Image, content: bytes) -> int:
    """Of a channel: Pillow does not tell where it cuts them down."""
    if picture.format == "PNG":
        return content[24]  # in the first chunk
    if picture.format == "AVIF":
        _, found, settings = content.partition(b"av1C")
        return 10 if found and settings[2] & 0x40 else 8  # or 12
    if isinstance(picture, PpmImageFile):
        args = picture.tile[0].args  # ("RGB", highest value), where that is not 255
        return int(args[1]).bit_length() if isinstance(args, tuple) else 8
    bits = picture.tag_v2.get(258, (8,)) if isinstance(picture, TiffImageFile) else (8,)
    return max(bits)


def _channels(picture: Image.Image, background: Background) -> np.ndarray:
    """(1 or 3, H, W)."""
    grey = picture.mode in _GREY
    if picture.has_transparency_data:
        picture = background.behind(picture.convert("LA" if grey else "RGBA"))
    elif picture.mode != "L":
        picture = picture.convert("L" if grey else "RGB")
    pixels = np.array(picture)
    return pixels[None] if picture.mode == "L" else pixels.transpose(2, 0, 1)


def _upright(picture: Image.Image) -> Image.Image:
    """Turned as its EXIF data says, as viewers show it; where these are damaged, as it is."""
    picture.load()  # its damage is told
    try:
        return ImageOps.exif_transpose(picture)
    except (*_DAMAGE, RuntimeError):
        return picture


def decoded_array(content: bytes, where: str) -> np.ndarray:
    """The image (1 or 3, H, W) uint8 in the bytes of a .npy file.

    Raises:
        DamagedPicture: it is damaged, or holds something else.
    """
    with _damage_told(where):
        return checked(np.load(io.BytesIO(content), allow_pickle=False), where)


def checked(array: np.ndarray, where: str) -> np.ndarray:
    """The array itself, contiguous, if it is an image.

    Raises:
        DamagedPicture: it is not (1 or 3, H, W) uint8.
    """
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[0] not in (1, 3) or array.size == 0:
        raise DamagedPicture(f"{where} holds {array.dtype} of shape {array.shape}, not uint8 (1 or 3, H, W)")
    return np.ascontiguousarray(array)
