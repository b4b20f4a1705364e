"""Makes tests/data/pictures.npz: what transformers' processors make of a picture. Run with the peers' environment."""

import json
import pathlib

import numpy as np
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.rt_detr.image_processing_pil_rt_detr import RTDetrImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

CASES = {
    "vit": (ViTImageProcessorPil, {"size": {"height": 9, "width": 9}}),
    "clip": (CLIPImageProcessorPil, {"size": {"shortest_edge": 12}, "crop_size": {"height": 10, "width": 10}}),
    "clip_larger_crop": (CLIPImageProcessorPil, {"size": {"shortest_edge": 7}, "crop_size": 10}),
    "convnext": (ConvNextImageProcessorPil, {"size": {"shortest_edge": 8}, "crop_pct": 0.875}),
    "rt_detr": (RTDetrImageProcessorPil, {"size": {"height": 8, "width": 12}}),
}


def picture() -> np.ndarray:
    """Smooth waves, so that filters differ by what they do and not by noise; higher than wide."""
    y, x, c = np.meshgrid(np.arange(37), np.arange(26), np.arange(3), indexing="ij")
    return np.round(127.5 + 127.4 * np.sin(0.35 * x + 0.2 * y * (c + 1) + c)).astype(np.uint8)


def main() -> None:
    """Config as the processor writes it, and pixels with channels last."""
    arrays = {"picture": picture()}
    for name, (make, options) in CASES.items():
        processor = make(**options)
        pixels = processor(images=[picture(), picture().swapaxes(0, 1)], return_tensors="np")["pixel_values"]
        arrays[name] = np.asarray(pixels, np.float32).transpose(0, 2, 3, 1)
        arrays[f"{name}/config"] = np.array(json.dumps(processor.to_dict(), default=str))
    np.savez_compressed(pathlib.Path(__file__).parent.parent / "data" / "pictures.npz", **arrays)


if __name__ == "__main__":
    main()
