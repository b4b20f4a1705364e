"""Llama of transformers: shared heads, tied and untied heads, stretched positions, rows padded at either side."""

from makers._torch import Golden, seed, torch
from seeded import ids
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = {
    "vocab_size": 31,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 64,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
KINDS = {
    "llama": {},
    "llama_grouped": {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "tie_word_embeddings": True,
        "rope_parameters": LLAMA3,
    },
    "llama_linear": {
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    },
}


def goldens():
    made = {}
    for name, more in KINDS.items():
        config = LlamaConfig(**{**SIZES, **more})
        module = LlamaForCausalLM(config)
        arrays = seed(module)
        rows = torch.from_numpy(ids(0, 31, 2, 21)).long()
        cases = [{"ids": rows.int().numpy(), "output": module(rows).logits.numpy()}]
        rows = torch.from_numpy(ids(1, 31, 3, 9)).long()
        right = torch.arange(9)[None] < torch.tensor([9, 4, 1])[:, None]
        for mask in (right, right.flip(1)):
            positions = (mask.long().cumsum(1) - 1).clamp(min=0)
            output = module(rows, attention_mask=mask.long(), position_ids=positions).logits
            given = {"ids": rows.int().numpy(), "attention_mask": mask.int().numpy()}
            cases.append({**given, "output": output.numpy(), "valid": mask.numpy()})
        made[name] = Golden("LlamaConfig", "huggingface", config.to_dict(), {}, arrays, cases)
    return made
