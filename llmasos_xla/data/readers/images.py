"""Reads a folder of pictures, a folder for each class; a picture is decoded when its row is taken."""

import contextlib
import dataclasses
import pathlib
from typing import Any

import numpy as np

from llmasos_xla import errors
from llmasos_xla.data.readers.content import IMAGE, Content, require_as_many
from llmasos_xla.data.readers.files import files_by_class

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}

_CHANNELS = {"1": 1, "L": 1, "LA": 4, "RGBA": 4, "PA": 4}


def from_folder(
    folder: pathlib.Path, size: tuple[int, int] | None, channels: int | None, labels: np.ndarray | None
) -> Content:
    """Finds the pictures; classes are the names of the folders in it, sorted.

    Without `size` and `channels` the first picture's are wanted of all. Raises ValueError if there are no pictures; on
    taking rows, for one that is damaged, of another size, or in color where grey is wanted.
    """
    if channels is not None and channels not in MODES:
        raise ValueError(f"Dataset: channels={channels}; 1 (grey), 3 (RGB) or 4 (RGBA) are wanted")
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ValueError(f"Dataset: image_size={size}; (height, width) in pixels is wanted")
    files, classes, ids = files_by_class(folder, SUFFIXES, "pictures")
    with _opened(files[0]) as first:
        height, width = size or (first.size[1], first.size[0])
        pictures = Pictures(
            tuple(files),
            (int(height), int(width)),
            channels or _CHANNELS.get(first.mode, 3),
            resize=size is not None,
            convert=channels is not None,
        )
    y = ids if labels is None else labels
    require_as_many(y, len(files), f"{folder} holds {len(files)} pictures")
    return Content(IMAGE, pictures, y, str(folder), classes=classes if labels is None else None)


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Picture files as uint8 `[rows, height, width, channels]`."""

    files: tuple[pathlib.Path, ...]
    size: tuple[int, int]
    channels: int
    resize: bool
    """Bring other sizes to `size`; otherwise they are an error."""
    convert: bool
    """Bring color to grey where `channels` says so; otherwise it is an error."""

    threads = 4

    def __len__(self) -> int:
        return len(self.files)

    def read(self, indices: np.ndarray) -> tuple[Any, np.ndarray | None]:
        """Decodes the pictures at `indices`."""
        out = np.empty((len(indices), *self.size, self.channels), np.uint8)
        for row, index in enumerate(indices):
            out[row] = self._decode(self.files[index])
        return out, None

    def _decode(self, file: pathlib.Path) -> np.ndarray:
        height, width = self.size
        with _opened(file) as picture:
            if picture.size != (width, height) and not self.resize:
                raise ValueError(
                    f"Dataset: {file} is {picture.size[1]}x{picture.size[0]}, the first picture {height}x{width}; "
                    "bring all to one size with image_size=(height, width)"
                )
            if picture.mode.startswith(("I", "F")):
                raise ValueError(
                    f"Dataset: {file} has more than 8 bits a channel ({picture.mode}); bring it to 8 first"
                )
            if _CHANNELS.get(picture.mode, 3) > self.channels and not self.convert:
                raise ValueError(
                    f"Dataset: {file} has colors ({picture.mode}) that the first picture has not; say with channels= "
                    "what all are brought to: 1, 3 or 4"
                )
            try:
                picture = picture.convert(MODES[self.channels])
            except (OSError, SyntaxError) as error:
                raise ValueError(f"Dataset: {file} is damaged: {error}") from None
            if picture.size != (width, height):
                picture = picture.resize((width, height))
            return np.asarray(picture).reshape(height, width, self.channels)


def _opened(file: pathlib.Path) -> Any:
    try:
        from PIL import ExifTags, Image, ImageOps
    except ImportError:
        raise errors.missing_package("Dataset of images", "pillow") from None
    try:
        picture = Image.open(file)
        with contextlib.ExitStack() as closing:
            closing.enter_context(picture)
            # Cameras write how they were held instead of turning the picture.
            if picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                return ImageOps.exif_transpose(picture)
            closing.pop_all()
        return picture
    except (OSError, SyntaxError) as error:
        raise ValueError(f"Dataset: {file} is damaged or no picture: {error}") from None
