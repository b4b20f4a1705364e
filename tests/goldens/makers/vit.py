"""ViT: Hugging Face's ViTForImageClassification, its weights read from a file, which has the published names."""

import tempfile

from makers._torch import Golden, torch
from safetensors.torch import load_file, save_file
from seeded import inputs, seeded
from transformers import ViTConfig, ViTForImageClassification

SIZES = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "layer_norm_eps": 1e-6,
}
# Of the second the images are of other sizes than the positions, of the first their height is no multiple of a patch.
MODELS = {
    "vit": ({"image_size": [17, 20], "patch_size": 4, "num_channels": 1}, [(17, 20)], {}),
    "vit_interpolated": (
        {"image_size": 16, "patch_size": 4, "qkv_bias": False, "hidden_act": "gelu_new"},
        [(16, 16), (13, 24), (8, 8)],
        {"interpolate": True},
    ),
}


def goldens():
    made = {}
    for name, (more, images, options) in MODELS.items():
        told = {**SIZES, **more}
        config = ViTConfig(**told, num_labels=5)
        with tempfile.TemporaryDirectory() as folder:
            ViTForImageClassification(config).save_pretrained(folder)
            path = f"{folder}/model.safetensors"
            arrays = {key: tuple(array.shape) for key, array in load_file(path).items()}
            save_file({key: torch.from_numpy(seeded(key, s)) for key, s in arrays.items()}, path, {"format": "pt"})
            module = ViTForImageClassification.from_pretrained(folder).eval()
        cases = []
        for i, size in enumerate(images):
            x = inputs(i, 2, *size, config.num_channels)
            given = torch.from_numpy(x).permute(0, 3, 1, 2)
            output = module(given, interpolate_pos_encoding=bool(options)).logits
            cases.append({"images": x, "output": output.numpy()})
        told["id2label"] = {str(i): label for i, label in config.id2label.items()}
        made[name] = Golden("ViTConfig", "huggingface", told, options, arrays, cases)
    return made
