"""What transformers' generate writes: greedily and with beams, for prompts of different lengths."""

import numpy as np
from makers._torch import Golden, seed, torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

# With seeded weights GPT-2 finds all ids nearly equal, and which of them wins is rounding.
LOUDER = {"GPT2Config": ("transformer.ln_f.weight", 30.0), "LlamaConfig": ("model.norm.weight", 1.0)}
PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5]]
NEW = 12
KINDS = {
    "generation/gpt2": (
        "GPT2Config",
        GPT2LMHeadModel,
        GPT2Config(vocab_size=29, n_positions=24, n_embd=16, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=8),
    ),
    "generation/llama": (
        "LlamaConfig",
        LlamaForCausalLM,
        LlamaConfig(
            vocab_size=29, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=24, eos_token_id=[7, 11],
        ),
    ),
}  # fmt: skip
SEARCHES = [(1, 1.0, False), (3, 1.0, False), (3, 0.0, True), (3, 2.0, False), (3, -1.0, False)]


def goldens():
    made = {}
    length = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (length - len(p)) + p for p in PROMPTS])
    mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in PROMPTS])
    for name, (kind, family, config) in KINDS.items():
        module = family(config)
        arrays = seed(module)
        module.get_parameter(LOUDER[kind][0]).mul_(LOUDER[kind][1])
        cases = []
        for beams, penalty, early in SEARCHES:
            more = {} if beams == 1 else {"length_penalty": penalty, "early_stopping": early, "output_scores": True}
            found = module.generate(
                ids, attention_mask=mask, max_new_tokens=NEW, num_beams=beams, num_return_sequences=beams,
                do_sample=False, pad_token_id=0, return_dict_in_generate=True, **more,
            )  # fmt: skip
            case = {"beams": beams, "length_penalty": penalty, "early_stopping": early}
            case["output"] = found.sequences[:, length:].reshape(len(PROMPTS), beams, -1).numpy()
            if beams > 1:
                case["scores"] = found.sequences_scores.reshape(len(PROMPTS), beams).numpy()
            cases.append({key: np.asarray(value) for key, value in case.items()})
        options = {"prompts": PROMPTS, "new": NEW, "louder": LOUDER[kind]}
        made[name] = Golden(kind, "huggingface", config.to_dict(), options, arrays, cases)
    return made
