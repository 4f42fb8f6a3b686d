"""One encoded picture as an array: what every format of picture files shares."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from trigflow.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
MOST_PIXELS = 2**26  # of one picture: a file of a kilobyte can claim to hold more than the memory does
MOST_BYTES = 2**28  # of one file within an archive, uncompressed

_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
_PNG_END = b"IEND\xaeB`\x82"  # type and checksum of the last chunk
_GREY = ("L", "1", "LA")
_COLOURS = ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr")
# What Pillow and numpy raise for a picture or an array that is damaged or foreign.
_DAMAGE = (
    *(OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, MemoryError, ArithmeticError),
    *(Image.DecompressionBombError, Image.DecompressionBombWarning),
)


class DamagedPicture(UserError):
    """One picture of many cannot be used; `trigflow data prepare --skip-damaged` leaves it out."""


def is_picture(name: str) -> bool:
    """Whether a name ends as a picture's does, and is none of the hidden files that archivers add."""
    hidden = any(part == "__MACOSX" or part.startswith(".") for part in Path(name).parts)
    return name.lower().endswith(SUFFIXES) and not hidden


def decoded(content: bytes, where: str) -> np.ndarray:
    """The pixels of an encoded picture; palettes become RGB, an alpha channel is dropped.

    Args:
        content: of a PNG, JPEG, BMP or WebP file.
        where: file and name, for the error.

    Returns:
        (1 or 3, H, W) uint8.

    Raises:
        DamagedPicture: damaged, foreign, of more than MOST_PIXELS pixels or of 16 bits a channel (Pillow would cut them
            down to 8 unasked).
    """
    with _damage_told(where), warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return checked(_pixels(content, where), where)


@contextlib.contextmanager
def _damage_told(where: str) -> Iterator[None]:
    """Whatever Pillow and numpy raise, as one line."""
    try:
        yield
    except UserError:  # is a ValueError
        raise
    except _DAMAGE as error:
        raise DamagedPicture(f"{where} is damaged or no image ({type(error).__name__})") from None


def _pixels(content: bytes, where: str) -> np.ndarray:
    with Image.open(io.BytesIO(content), formats=_FORMATS) as picture:  # reads no more than the header
        if picture.width * picture.height > MOST_PIXELS:
            raise DamagedPicture(
                f"{where} claims {picture.width}x{picture.height} pixels, more than {MOST_PIXELS}: make it smaller"
            )
        # Pillow does not ask for the end, if all pixels are there.
        if picture.format == "PNG" and _PNG_END not in content:
            raise DamagedPicture(f"{where} is damaged or no image (a PNG without its end)")
        deep = picture.format == "PNG" and content[24] == 16  # the bit depth in the PNG's first chunk
        if deep or picture.mode not in (*_GREY, *_COLOURS):
            raise DamagedPicture(f"{where} has more than 8 bits a channel: convert it to 8 bits")
        if picture.mode in _GREY:
            return np.array(picture.convert("L"))[None]
        if "transparency" in picture.info:  # Pillow warns unless the palette's alpha is made explicit
            return np.array(picture.convert("RGBA").convert("RGB")).transpose(2, 0, 1)
        return np.array(picture.convert("RGB")).transpose(2, 0, 1)


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
