"""Whisper by Hugging Face, of random weights."""

import numpy as np
from makers._torch import Golden, seed, torch
from seeded import ids, inputs
from transformers import WhisperConfig, WhisperForConditionalGeneration

SIZES = {
    "vocab_size": 61,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "num_mel_bins": 10,
    "max_source_positions": 13,
    "max_target_positions": 12,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 3,
    "begin_suppress_tokens": [4, 2],
}
OTHERS = {
    **SIZES,
    "d_model": 24,
    "encoder_layers": 1,
    "decoder_layers": 3,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 36,
    "num_mel_bins": 7,
    "max_source_positions": 8,
}


def goldens():
    made = {}
    for name, sizes in (("whisper", SIZES), ("whisper_uneven", OTHERS)):
        config = WhisperConfig(**sizes)
        module = WhisperForConditionalGeneration(config)
        arrays = seed(module)
        cases = []
        for number, time in enumerate((1, 7, 12)):
            features = inputs(number, 2, 2 * config.max_source_positions, config.num_mel_bins)
            decoder_ids = ids(number, config.vocab_size, 2, time)
            mask = np.ones((2, time), np.int32)
            mask[1, max(time - 3, 1) :] = 0
            output = module(
                torch.from_numpy(features).transpose(1, 2),
                decoder_input_ids=torch.from_numpy(decoder_ids).long(),
                decoder_attention_mask=torch.from_numpy(mask),
            ).logits.numpy()
            case = {"input_features": features, "decoder_input_ids": decoder_ids, "decoder_attention_mask": mask}
            cases.append({**case, "output": output, "valid": mask != 0})
        made[name] = Golden("WhisperConfig", "huggingface", sizes, {}, arrays, cases)
    return made
