"""Reads a folder of pictures, a folder for each class; a picture is decoded when its row is taken."""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from llmasos_xla import errors
from llmasos_xla.data.readers.content import IMAGE, Content, require_as_many

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def from_folder(
    folder: pathlib.Path, size: tuple[int, int] | None, channels: int | None, labels: np.ndarray | None
) -> Content:
    """Finds the pictures; classes are the names of the folders in it, sorted.

    Raises ValueError if there are none; on taking rows, for a picture that is damaged or of another size.
    """
    if channels is not None and channels not in MODES:
        raise ValueError(f"Dataset: channels={channels}; 1 (grey), 3 (RGB) or 4 (RGBA) are wanted")
    files, classes, ids = files_by_class(folder, SUFFIXES, "pictures")
    if size is None or channels is None:
        first_size, first_channels = _look(files[0])
        size, channels = size or first_size, channels or first_channels
        given = False
    else:
        given = True
    pictures = Pictures(tuple(files), (int(size[0]), int(size[1])), channels, resize=given)
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

    def __len__(self) -> int:
        return len(self.files)

    def read(self, indices: np.ndarray) -> tuple[Any, np.ndarray | None]:
        """Decodes the pictures at `indices`."""
        out = np.empty((len(indices), *self.size, self.channels), np.uint8)
        for row, index in enumerate(indices):
            out[row] = self._decode(self.files[index])
        return out, None

    def _decode(self, file: pathlib.Path) -> np.ndarray:
        image_module, _ = pillow()
        height, width = self.size
        try:
            with image_module.open(file) as picture:
                if picture.size != (width, height):
                    if not self.resize:
                        raise ValueError(
                            f"Dataset: {file} is {picture.size[1]}x{picture.size[0]}, the first picture "
                            f"{height}x{width}; bring all to one size with image_size=(height, width)"
                        )
                    picture = picture.convert(MODES[self.channels]).resize((width, height))
                return np.asarray(picture.convert(MODES[self.channels])).reshape(height, width, self.channels)
        except (OSError, SyntaxError) as error:
            raise ValueError(f"Dataset: {file} is damaged or no picture: {error}") from None


def files_by_class(
    folder: pathlib.Path, suffixes: tuple[str, ...], what: str
) -> tuple[list[pathlib.Path], tuple[str, ...] | None, np.ndarray | None]:
    """The files, the class names and a class id for each file; no classes if the files lie in the folder itself."""
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    found = {name: _media(folder / name, suffixes) for name in names}
    found = {name: files for name, files in found.items() if files}
    loose = [file for file in sorted(folder.iterdir()) if file.suffix.lower() in suffixes]
    if found and loose:
        raise ValueError(
            f"Dataset: {folder} holds folders of {what} ({', '.join(list(found)[:4])}) and {what} beside them "
            f"({loose[0].name}); put each into the folder of its class"
        )
    if not found and not loose:
        raise ValueError(f"Dataset: the folder {folder} holds no {what} ({', '.join(suffixes)})")
    if loose:
        return loose, None, None
    ids = np.repeat(np.arange(len(found), dtype=np.int32), [len(files) for files in found.values()])
    return [file for files in found.values() for file in files], tuple(found), ids


def pillow() -> Any:
    """Pillow's Image module and its error, imported only when a picture is read."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise errors.missing_package("Dataset of images", "pillow") from None
    return Image, UnidentifiedImageError


def _look(file: pathlib.Path) -> tuple[tuple[int, int], int]:
    image_module, _ = pillow()
    try:
        with image_module.open(file) as picture:
            channels = {"1": 1, "L": 1, "I": 1, "F": 1, "I;16": 1, "RGBA": 4}.get(picture.mode, 3)
            return (picture.size[1], picture.size[0]), channels
    except (OSError, SyntaxError) as error:
        raise ValueError(f"Dataset: {file} is damaged or no picture: {error}") from None


def _media(folder: pathlib.Path, suffixes: tuple[str, ...]) -> list[pathlib.Path]:
    return [file for file in sorted(folder.rglob("*")) if file.suffix.lower() in suffixes]
