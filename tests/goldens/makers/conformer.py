"""Blocks of Hugging Face's Parakeet, which are the paper's, between normalized features and a classifier."""

import numpy as np
from makers._torch import Golden, seed, torch
from seeded import inputs
from transformers.models.parakeet import modeling_parakeet as parakeet
from transformers.models.parakeet.configuration_parakeet import ParakeetEncoderConfig

SIZES = {"vocab": 7, "width": 16, "depth": 2, "num_heads": 4, "hidden_dim": 24, "window": 5}
CHANNELS = 6


class Recognizer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        config = ParakeetEncoderConfig(
            hidden_size=SIZES["width"],
            num_hidden_layers=SIZES["depth"],
            num_attention_heads=SIZES["num_heads"],
            intermediate_size=SIZES["hidden_dim"],
            conv_kernel_size=SIZES["window"],
            attn_implementation="eager",
        )
        self.features_norm = torch.nn.BatchNorm1d(CHANNELS)
        self.projection = torch.nn.Linear(CHANNELS, SIZES["width"])
        self.layers = torch.nn.ModuleList(parakeet.ParakeetEncoderBlock(config, i) for i in range(SIZES["depth"]))
        self.classifier = torch.nn.Linear(SIZES["width"], SIZES["vocab"])
        # In a tuple: no module of this one, so that its frequencies keep their values.
        self.positions = (parakeet.ParakeetEncoderRelPositionalEncoding(config),)

    def forward(self, x, mask):
        x = self.projection(self.features_norm(x.transpose(1, 2)).transpose(1, 2))
        positions = self.positions[0](x)
        seen = (mask[:, None, :] & mask[:, :, None])[:, None]
        for layer in self.layers:
            x = layer(x, attention_mask=seen, position_embeddings=positions)
        return self.classifier(x)


def goldens():
    module = Recognizer()
    arrays = seed(module)
    cases = []
    for number, (steps, lengths) in enumerate(((9, (9, 9)), (14, (14, 5)), (1, (1, 1)))):
        x, lengths = inputs(number, 2, steps, CHANNELS), np.array(lengths, np.int32)
        valid = np.arange(steps)[None] < lengths[:, None]
        output = module(torch.from_numpy(x), torch.from_numpy(valid)).numpy()
        cases.append({"sound": x, "lengths": lengths, "output": output, "valid": valid})
    config = {**SIZES, "body": "conformer", "causal": False, "subsampling": 1, "features": None}
    config |= {"input_shape": [None, CHANNELS]}
    return {"conformer": Golden("CTCConfig", "torch", config, {}, arrays, cases)}
