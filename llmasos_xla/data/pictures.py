"""Pictures as published models take them: resized, cropped, normalized, as their preprocessor_config.json says."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

FILE = "preprocessor_config.json"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class PictureReader:
    """From files, Pillow's pictures and arrays to float32 [rows, height, width, 3].

    Attributes:
        size: (height, width) that a picture is resized to; None leaves it.
        shortest: length that its shorter side is resized to, in the place of `size`.
        crop: (height, width) of the middle that is taken then, filled up with 0 where the picture is smaller.
        resample: 0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic, as Pillow counts them.
        scale: what bytes are multiplied with.
        mean: subtracted from each channel then; None leaves them.
        std: what each channel is divided by.

    >>> PictureReader(size=(2, 2))([np.zeros((4, 6, 3), np.uint8)]).shape
    (1, 2, 2, 3)
    """

    size: tuple[int, int] | None = None
    shortest: int | None = None
    crop: tuple[int, int] | None = None
    resample: int = 2
    scale: float = 1 / 255
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @classmethod
    def imagenet(cls) -> "PictureReader":
        """torchvision's: the shorter side 256, the middle 224 x 224, normalized."""
        return cls(shortest=256, crop=(224, 224), mean=IMAGENET_MEAN, std=IMAGENET_STD)

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> "PictureReader":
        """Of the contents of a preprocessor_config.json; raises ValueError for sizes that it does not understand."""
        size: Any = config.get("size") if config.get("do_resize", True) else None
        size = {"shortest_edge": size} if isinstance(size, int) and config.get("default_to_square") is False else size
        shortest, crop = None, None
        if isinstance(size, Mapping) and "shortest_edge" in size:
            shortest, size = int(size["shortest_edge"]), None
            if "crop_pct" in config:
                # ConvNeXt: a picture of 384 and more is warped, a smaller one cut out of a larger one.
                edge = shortest
                warped = edge >= 384
                size, shortest = ((edge, edge), None) if warped else (None, int(edge / config["crop_pct"]))
                crop = None if warped else (edge, edge)
        if config.get("do_center_crop"):
            crop = _pair(config.get("crop_size"))
        normalize = config.get("do_normalize", "image_mean" in config)
        return cls(
            size=_pair(size),
            shortest=shortest,
            crop=crop,
            resample=int(config.get("resample", 2)),
            scale=float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0,
            mean=tuple(map(float, config["image_mean"])) if normalize else None,
            std=tuple(map(float, config["image_std"])) if normalize else None,
        )

    @classmethod
    def read(cls, path: str | os.PathLike) -> "PictureReader":
        """Of a preprocessor_config.json, or of the folder with one."""
        path = pathlib.Path(path)
        file = path / FILE if path.is_dir() else path
        try:
            config = json.loads(file.read_bytes())
            if not isinstance(config, dict):
                raise ValueError("it is no table")
            return cls.from_json(config)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"PictureReader: {str(file)!r} does not say how pictures are prepared: {error!r}"
            ) from None

    def __call__(self, pictures: Sequence[Any]) -> np.ndarray:
        """Paths, Pillow's pictures, or arrays [height, width] or [height, width, channels] of bytes, or floats in 0..1.

        Raises ValueError for what is no picture, and for different sizes where none is wanted.
        """
        found = [self._one(opened(picture)) for picture in pictures]
        if len({one.shape for one in found}) > 1:
            sizes = sorted({one.shape[:2] for one in found})
            raise ValueError(
                f"PictureReader: the pictures have different sizes {sizes}; say which they are to have, "
                "size=(height, width)"
            )
        x = np.stack(found) * np.float32(self.scale)
        if self.mean is not None and self.std is not None:
            x = (x - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return x

    def _one(self, picture: Any) -> np.ndarray:
        width, height = picture.size
        size = self.size
        if self.shortest is not None:
            # Cut down, as the field does: 2 : 3 of 224 is 336, of 225 is 337.
            small = self.shortest
            size = (small, int(small * width / height)) if height <= width else (int(small * height / width), small)
        if size is not None and (height, width) != size:
            picture = picture.resize((size[1], size[0]), self.resample)
        x = np.asarray(picture, np.float32)
        return x if self.crop is None else _middle(x, *self.crop)


def opened(picture: Any) -> Any:
    """A path, an array or a picture as Pillow's picture in RGB; bytes as they are, floats as shares of 255."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(picture, str | os.PathLike):
        if not os.path.isfile(picture):
            raise FileNotFoundError(f"picture: there is no file {os.fspath(picture)!r}")
        try:
            with Image.open(picture) as file:
                return upright(file, os.fspath(picture)).convert("RGB")
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(f"picture: {os.fspath(picture)!r} is no picture that can be read: {error}") from None
    if hasattr(picture, "convert") and hasattr(picture, "getbands"):
        return upright(picture).convert("RGB")
    x = np.asarray(picture)
    x = x[..., 0] if x.ndim == 3 and x.shape[-1] == 1 else x
    if x.dtype.kind == "f" and x.size and x.min() >= 0 and x.max() <= 1:
        x = np.round(x * 255).astype(np.uint8)
    if x.ndim not in (2, 3) or (x.ndim == 3 and x.shape[-1] not in (3, 4)) or x.dtype != np.uint8:
        raise ValueError(
            "picture: a path, a picture or an array [height, width, channels] of bytes or of floats from 0 to 1 is "
            f"wanted, got {x.dtype} {x.shape}"
        )
    return Image.fromarray(x).convert("RGB")


def upright(picture: Any, name: str = "a picture") -> Any:
    """Pillow's picture, turned as its EXIF data say, if a channel has 8 bits.

    Raises ValueError for others, of which `convert` would cut all above 255 off.
    """
    from PIL import ImageOps

    if picture.mode.startswith(("I", "F")):
        raise ValueError(f"picture: {name} has more than 8 bits a channel ({picture.mode}); bring it to 8 first")
    return ImageOps.exif_transpose(picture)


def _middle(x: np.ndarray, height: int, width: int) -> np.ndarray:
    top, left = (x.shape[0] - height) // 2, (x.shape[1] - width) // 2
    if top < 0 or left < 0:
        above, before = max(0, -top), max(0, -left)
        more = ((above, max(0, height - x.shape[0] - above)), (before, max(0, width - x.shape[1] - before)), (0, 0))
        x = np.pad(x, more)
        top, left = max(0, top), max(0, left)
    return x[top : top + height, left : left + width]


def _pair(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping) and {"height", "width"} <= size.keys():
        return int(size["height"]), int(size["width"])
    if isinstance(size, Sequence) and len(size) == 2:
        return int(size[0]), int(size[1])
    raise ValueError(f"a size of {str(size)[:80]} is not understood")
