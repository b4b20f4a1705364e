"""Reads the Free Spoken Digit Dataset: 8 kHz recordings of the digits by six speakers, 50 of each digit by each."""

import os
import pathlib
import sys
import tarfile
import wave

import numpy as np

RATE = 8000


def recordings():
    """{(speaker, digit, index): samples with a peak of 0.5}; indices 0 to 4 are the official test part."""
    path = pathlib.Path(os.environ.get("LLMASOS_DATA", "."), "fsdd", "fsdd.tar.gz")
    if not path.exists():
        sys.exit(f"{path} is not there: LLMASOS_DATA wants to name a folder with fsdd/fsdd.tar.gz")
    found = {}
    with tarfile.open(path) as archive:
        for member in sorted(archive.getnames()):
            if member.endswith(".wav"):
                with wave.open(archive.extractfile(member)) as file:
                    sound = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32)
                digit, speaker, index = member.split("/")[-1][:-4].split("_")
                found[speaker, int(digit), int(index)] = 0.5 * sound / max(np.abs(sound).max(), 1.0)
    return found


def at_speed(sound, speed):
    """The sound so many times faster, and as much higher."""
    return np.interp(np.arange(0, len(sound) - 1, speed), np.arange(len(sound)), sound).astype(np.float32)
