"""Standard data sets by name: from the package, from a folder, or downloaded once and checked."""

import dataclasses
import hashlib
import os
import pathlib
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from llmasos_xla import errors
from llmasos_xla.data.readers.content import ARRAY, Content
from llmasos_xla.data.readers.idx import parse_idx, read_bytes

if TYPE_CHECKING:
    from llmasos_xla.data.dataset import Dataset

FOLDER_VARIABLE = "LLMASOS_DATA"
_SECONDS, _MOST_BYTES = 30, 1 << 26


@dataclasses.dataclass(frozen=True)
class IdxSet:
    """A standard set of four idx files."""

    mirrors: tuple[str, ...]
    sha256: dict[str, str]
    """Of each file unzipped, since the gzip wrapping differs from mirror to mirror."""
    classes: tuple[str, ...] | None = None


_TRAIN_X, _TRAIN_Y = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
_TEST_X, _TEST_Y = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"

MNIST = IdxSet(
    ("https://storage.googleapis.com/cvdf-datasets/mnist/", "https://ossci-datasets.s3.amazonaws.com/mnist/"),
    {
        _TRAIN_X: "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        _TRAIN_Y: "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        _TEST_X: "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        _TEST_Y: "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
)
FASHION_MNIST = IdxSet(
    (
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    ),
    {
        _TRAIN_X: "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        _TRAIN_Y: "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        _TEST_X: "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        _TEST_Y: "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
    ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def open_named(make: Callable[..., "Dataset"], name: str, mode: str, options: dict[str, Any]) -> "Dataset":
    """The Dataset of that name; the training or the test part by `mode`.

    Raises ValueError for an unknown name or a file with another content than the published one; OSError if the files
    are nowhere here and cannot be downloaded.
    """
    if name not in SETS:
        raise errors.unknown("Dataset.named", "data set", name, SETS)
    if mode not in ("train", "test"):
        raise errors.unknown("Dataset.named", "mode=", mode, ("train", "test"))
    return make(SETS[name](mode), mode=mode, **options)


def cache_folder() -> pathlib.Path:
    """Where downloads are kept: `llmasos_xla` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "llmasos_xla"


def _digits(mode: str) -> Content:
    """1,797 scanned digits of 8x8 with 17 shades (UCI, as scikit-learn ships them): 1,437 to train, 360 to test."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise errors.missing_package("Dataset.named('digits')", "scikit-learn") from None
    digits: Any = load_digits()
    images, labels = digits.images, digits.target
    order = np.argsort(np.random.Philox(key=0).random_raw(len(images)), kind="stable")
    rows = np.sort(order[:1437] if mode == "train" else order[1437:])
    x = images[rows].astype(np.uint8)[..., None]
    return Content(ARRAY, x, labels[rows].astype(np.int32), "digits", pixel_max=16)


def _idx_set(name: str, files: IdxSet) -> Callable[[str], Content]:
    def read(mode: str) -> Content:
        images, labels = (_TRAIN_X, _TRAIN_Y) if mode == "train" else (_TEST_X, _TEST_Y)
        x = parse_idx(_content(name, files, images), images)
        y = parse_idx(_content(name, files, labels), labels)
        return Content(ARRAY, x[..., None], y.astype(np.int32), name, classes=files.classes)

    return read


def _content(name: str, files: IdxSet, file: str) -> bytes:
    folder = os.environ.get(FOLDER_VARIABLE)
    places = [pathlib.Path(folder).expanduser() / name] if folder else []
    for place in [*places, cache_folder() / name]:
        for path in (place / f"{file}.gz", place / file):
            if path.is_file():
                data = read_bytes(path)
                _verify(data, files.sha256[file], str(path))
                return data
    return _download(name, files, file)


def _download(name: str, files: IdxSet, file: str) -> bytes:
    folder = cache_folder() / name
    folder.mkdir(parents=True, exist_ok=True)
    failures = []
    for mirror in files.mirrors:
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{file}.")
        path = pathlib.Path(temporary)
        try:
            with (
                os.fdopen(handle, "wb") as out,
                urllib.request.urlopen(f"{mirror}{file}.gz", timeout=_SECONDS) as source,
            ):
                out.write(source.read(_MOST_BYTES))
            data = read_bytes(path)
            _verify(data, files.sha256[file], f"{mirror}{file}.gz")
            # Only a whole, checked file gets the name under which it is looked for.
            os.replace(path, folder / f"{file}.gz")
            return data
        except (OSError, ValueError) as error:
            failures.append(f"{mirror}: {getattr(error, 'reason', None) or error}")
        finally:
            path.unlink(missing_ok=True)
    raise OSError(
        f"Dataset.named({name!r}): {file}.gz is not here and cannot be downloaded ({'; '.join(failures)}). Without a "
        f"network, put the four files {', '.join(f'{f}.gz' for f in files.sha256)} into {folder}, or set "
        f"{FOLDER_VARIABLE} to a folder that holds them in {name}/"
    )


def _verify(data: bytes, sha256: str, where: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise ValueError(
            f"Dataset.named: {where} is not the published file: its content has SHA-256 {found}, not {sha256}; "
            "remove it"
        )


SETS: dict[str, Callable[[str], Content]] = {
    "digits": _digits,
    "mnist": _idx_set("mnist", MNIST),
    "fashion_mnist": _idx_set("fashion_mnist", FASHION_MNIST),
}
