"""Reads a folder of sound files; a file is decoded when its row is taken."""

import dataclasses
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from llmasos_xla import errors
from llmasos_xla.data.readers.content import AUDIO, Content, require_as_many
from llmasos_xla.data.readers.files import files_by_class

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif", ".au")


def from_folder(
    folder: pathlib.Path,
    length: int | None,
    label_from: str | Callable[[str], Any] | None,
    labels: np.ndarray | None,
) -> Content:
    """Finds the files and reads their headers.

    Classes are the names of the folders, or what `label_from` reads off each file name: a function, or a regular
    expression whose first group (or whole match) is the label. Raises ValueError for no files, different sample rates
    or channels, a name without a label, a damaged file.
    """
    files, classes, ids = files_by_class(folder, SUFFIXES, "sound files")
    if label_from is not None:
        names = [_label(file.name, label_from) for file in files]
        classes = tuple(sorted(set(names)))
        id_of = {name: i for i, name in enumerate(classes)}
        ids = np.array([id_of[name] for name in names], np.int32)
    if labels is not None:
        require_as_many(labels, len(files), f"{folder} holds {len(files)} sound files")
        classes, ids = None, labels
    headers = [_header(file) for file in files]
    rate, channels, _ = headers[0]
    for file, (other_rate, other_channels, _) in zip(files, headers):
        if (other_rate, other_channels) != (rate, channels):
            raise ValueError(
                f"Dataset: {file} has {other_rate} Hz and {other_channels} channels, {files[0]} {rate} Hz and "
                f"{channels}; bring all files to one rate and number of channels first"
            )
    if length is not None and length < 1:
        raise ValueError(f"Dataset: length={length}; a number of samples above 0 is wanted")
    longest = max(frames for _, _, frames in headers)
    return Content(AUDIO, Sounds(tuple(files), length or longest, channels, rate), ids, str(folder), classes=classes)


@dataclasses.dataclass(frozen=True)
class Sounds:
    """Sound files as float32 in [-1, 1]: `[rows, length]`, or `[rows, length, channels]` if there are several."""

    files: tuple[pathlib.Path, ...]
    length: int
    channels: int
    rate: int

    # Measured on short WAV files: four threads take twice the time of one.
    threads = 1

    def __len__(self) -> int:
        return len(self.files)

    def read(self, indices: np.ndarray) -> tuple[Any, np.ndarray | None]:
        """Decodes the files at `indices`, cut or padded with zeros at the end."""
        out = np.zeros((len(indices), self.length, self.channels), np.float32)
        for row, index in enumerate(indices):
            sound = self._decode(self.files[index])
            out[row, : len(sound)] = sound
        return (out[..., 0] if self.channels == 1 else out), None

    def _decode(self, file: pathlib.Path) -> np.ndarray:
        soundfile = _soundfile()
        try:
            return soundfile.read(str(file), frames=self.length, dtype="float32", always_2d=True)[0]
        except (OSError, soundfile.LibsndfileError) as error:
            raise ValueError(f"Dataset: {file} is damaged or no sound file: {error}") from None


def _header(file: pathlib.Path) -> tuple[int, int, int]:
    soundfile = _soundfile()
    try:
        info = soundfile.info(str(file))
    except (OSError, soundfile.LibsndfileError) as error:
        raise ValueError(f"Dataset: {file} is damaged or no sound file: {error}") from None
    return info.samplerate, info.channels, info.frames


def _label(name: str, label_from: str | Callable[[str], Any]) -> str:
    if not isinstance(label_from, str):
        return str(label_from(name))
    match = re.search(label_from, name)
    if match is None:
        raise ValueError(f"Dataset: label_from={label_from!r} finds nothing in the file name {name!r}")
    return match.group(1) if match.re.groups else match.group(0)


def _soundfile() -> Any:
    try:
        import soundfile
    except ImportError:
        raise errors.missing_package("Dataset of audio", "soundfile") from None
    return soundfile
