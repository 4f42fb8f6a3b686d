"""What is behind the transparent pixels of pictures."""

from __future__ import annotations

from PIL import Image, ImageColor

from trigflow.system.errors import UserError

WHITE = "white"


class Background:
    """A colour that pictures with transparent pixels are composited on.

    Args:
        name: of a colour, or #rrggbb.

    Attributes:
        pictures: how many had transparent pixels, of those that were decoded with it.

    Raises:
        UserError: no such colour.
    """

    def __init__(self, name: str = WHITE) -> None:
        self.name, self.pictures = name, 0
        try:
            self._colour = ImageColor.getrgb(name)
            if len(self._colour) != 3:  # alpha
                raise ValueError
        except ValueError:
            raise UserError(
                f"background '{name}' is no colour: give a name (white, black, ...) or '#rrggbb', in quotes"
            ) from None

    def behind(self, picture: Image.Image) -> Image.Image:
        """The picture (LA or RGBA) on the colour: L or RGB; grey stays grey on white, grey or black."""
        alpha = picture.getchannel("A")
        lowest, _ = alpha.getextrema()
        if lowest == 255:  # of an alpha channel that says nothing
            return picture.convert("L" if picture.mode == "LA" else "RGB")
        self.pictures += 1
        grey = picture.mode == "LA" and len(set(self._colour)) == 1
        mode, colour = ("L", self._colour[0]) if grey else ("RGB", self._colour)
        canvas = Image.new(mode, picture.size, colour)
        canvas.paste(picture.convert(mode), mask=alpha)
        return canvas

    @property
    def note(self) -> str:
        """What is to be said of the pictures, "" where none was transparent."""
        if not self.pictures:
            return ""
        have = "picture has" if self.pictures == 1 else "pictures have"
        return f"{self.pictures} {have} transparency: composited on {self.name}"
