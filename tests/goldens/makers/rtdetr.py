"""RT-DETR of Hugging Face transformers, tiny, with the names that files have; transformers 5 renames as it reads."""

import re

import numpy as np
from makers._torch import Golden, torch
from seeded import inputs, seeded
from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrResNetConfig

SIZES = {
    "num_labels": 5,
    "encoder_hidden_dim": 16,
    "encoder_ffn_dim": 24,
    "encoder_attention_heads": 2,
    "d_model": 16,
    "num_queries": 12,
    "decoder_ffn_dim": 20,
    "decoder_attention_heads": 4,
    "decoder_n_points": 3,
    "decoder_layers": 2,
    "num_denoising": 4,
}
BASIC = {"layer_type": "basic", "depths": [1, 2, 1, 1], "hidden_sizes": [8, 8, 12, 16], "embedding_size": 8}
BOTTLENECK = {"layer_type": "bottleneck", "depths": [2, 1, 1, 2], "hidden_sizes": [16, 24, 32, 32], "embedding_size": 8}
KINDS = {
    "rtdetr_basic": (
        BASIC,
        {"hidden_expansion": 0.5, "freeze_backbone_batch_norms": False},
        ((27, 61),),
    ),
    "rtdetr_bottleneck": (
        BOTTLENECK,
        {"encoder_hidden_dim": 24, "encoder_layers": 2, "encode_proj_layers": [1, 2], "activation_function": "relu"},
        ((32, 32),),
    ),
}


def published(name):
    """The array's name in files."""
    name = name.replace("o_proj", "out_proj").replace("encoder.aifi.", "encoder.encoder.")
    return re.sub(r"layers\.(\d+)\.mlp\.(fc\d)", r"layers.\1.\2", name)


def _clear(model, size, queries):
    """Images whose chosen positions are far from ties, and what is seen in them: rounding shall not choose others."""
    for seed in range(100):
        x = torch.from_numpy(inputs(seed, 2, *size, 3))
        given = model(x.permute(0, 3, 1, 2))
        best = given.enc_outputs_class.amax(-1).sort(descending=True).values[:, : queries + 1]
        if (best[:, :-1] - best[:, 1:]).min() > 2e-4:
            return x, given
    raise AssertionError(f"no images of {size} without near ties")


def _targets(classes):
    """Three objects for each of two images."""
    rng = np.random.default_rng(0)
    kinds, boxes = rng.integers(0, classes, (2, 3, 1)), rng.uniform(0.2, 0.6, (2, 3, 4))
    return np.concatenate([kinds, boxes], axis=-1).astype(np.float32)


def goldens():
    made = {}
    for name, (backbone, sizes, images) in KINDS.items():
        backbone = RTDetrResNetConfig(**backbone, out_indices=[2, 3, 4])
        channels = backbone.hidden_sizes[1:]
        sizes = {**SIZES, **sizes, "encoder_in_channels": channels}
        sizes["decoder_in_channels"] = [sizes["encoder_hidden_dim"]] * 3
        config = RTDetrConfig(**sizes, backbone_config=backbone)
        module = RTDetrForObjectDetection(config)
        arrays = {}
        for key, array in module.state_dict().items():
            if not array.dtype.is_floating_point:
                continue
            values = torch.from_numpy(seeded(published(key), tuple(array.shape)))
            array.data.copy_(values)
            arrays[published(key)] = tuple(array.shape)
        module.eval()
        cases = []
        for size in images:
            x, given = _clear(module.model, size, config.num_queries)
            targets = torch.from_numpy(_targets(config.num_labels))
            labels = [{"class_labels": rows[:, 0].long(), "boxes": rows[:, 1:]} for rows in targets]
            whole = module(x.permute(0, 3, 1, 2), labels=labels)
            logits, boxes = given.intermediate_logits, given.intermediate_reference_points
            early_logits = torch.cat([given.enc_topk_logits[:, None], logits[:, :-1]], 1)
            early_boxes = torch.cat([given.enc_topk_bboxes[:, None], boxes[:, :-1]], 1)
            case = {"images": x, "logits": whole.logits, "boxes": whole.pred_boxes}
            case |= {"targets": targets, "loss": whole.loss}
            case |= {"early_logits": early_logits, "early_boxes": early_boxes}
            cases.append({key: value.numpy() for key, value in case.items()})
        made[name] = Golden("RTDETRConfig", "huggingface", config.to_dict(), {}, arrays, cases)
    return made
