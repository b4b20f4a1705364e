"""Parakeet CTC by Hugging Face, of random weights, and what its feature extractor makes of sound."""

import numpy as np
from makers._torch import Golden, seed, torch
from seeded import inputs, sound
from transformers import ParakeetCTCConfig, ParakeetFeatureExtractor, ParakeetForCTC

ENCODER = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_kernel_size": 5,
    "subsampling_conv_channels": 4,
    "num_mel_bins": 12,
    "subsampling_factor": 4,
}
# Its own count of mels wants them to divide.
OTHER = {**ENCODER, "subsampling_factor": 8, "num_mel_bins": 16, "scale_input": False}
ENCODERS = {"parakeet": ENCODER, "parakeet_8": OTHER}


def goldens():
    made = {}
    for name, encoder in ENCODERS.items():
        config = {"vocab_size": 7, "pad_token_id": 6, "encoder_config": encoder}
        module = ParakeetForCTC(ParakeetCTCConfig(**config, attn_implementation="eager"))
        arrays = seed(module)
        cases = []
        for number, (frames, lengths) in enumerate(((33, (33, 18)), (16, (16, 9)))):
            x = inputs(number, 2, frames, encoder["num_mel_bins"])
            mask = (np.arange(frames)[None] < np.array(lengths)[:, None]).astype(np.int32)
            output = module(torch.from_numpy(x), attention_mask=torch.from_numpy(mask)).logits
            steps = module._get_output_attention_mask(torch.from_numpy(mask), target_length=output.shape[1]).numpy()
            # Here the blank comes first.
            output = np.roll(output.numpy(), 1, axis=-1)
            cases.append({"input_features": x, "attention_mask": mask, "output": output, "valid": steps})
        made[name] = Golden("ParakeetConfig", "huggingface", config, {}, arrays, cases)
    samples, lengths = sound(0, 2, 9000), np.array([9000, 5003], np.int32)
    extract = ParakeetFeatureExtractor(feature_size=80)
    given = extract([row[:n] for row, n in zip(samples, lengths)], sampling_rate=16000, return_tensors="np")
    steps = np.arange(0, given.input_features.shape[1], 7)
    case = {"samples": np.array(samples.shape), "lengths": lengths, "steps": steps}
    case |= {"output": given.input_features[:, steps], "mask": given.attention_mask.astype(np.int32)}
    made["features/parakeet"] = Golden("ParakeetConfig", "extractor", {}, {}, {}, [case])
    return made
