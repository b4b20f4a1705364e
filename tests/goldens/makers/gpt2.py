"""GPT-2 of transformers, with rows padded at the right and at the left."""

from makers._torch import Golden, seed, torch
from seeded import ids
from transformers import GPT2Config, GPT2LMHeadModel

SIZES = {"vocab_size": 31, "n_positions": 16, "n_embd": 12, "n_layer": 2, "n_head": 3}


def goldens():
    made = {}
    for name, more in (("gpt2", {}), ("gpt2_odd", {"n_head": 2, "n_inner": 17, "activation_function": "gelu"})):
        config = GPT2Config(**{**SIZES, **more})
        module = GPT2LMHeadModel(config)
        arrays = seed(module)
        cases = []
        for length, real in ((7, None), (11, [11, 5, 1])):
            rows = torch.from_numpy(ids(length, 31, 3, length)).long()
            if real is None:
                cases.append({"ids": rows.int().numpy(), "output": module(rows).logits.numpy()})
                continue
            for side in ("right", "left"):
                mask = torch.arange(length)[None] < torch.tensor(real)[:, None]
                mask = mask if side == "right" else mask.flip(1)
                positions = (mask.long().cumsum(1) - 1).clamp(min=0)
                output = module(rows, attention_mask=mask.long(), position_ids=positions).logits
                cases.append(
                    {
                        "ids": rows.int().numpy(),
                        "attention_mask": mask.int().numpy(),
                        "output": output.numpy(),
                        "valid": mask.numpy(),
                    }
                )
        made[name] = Golden("GPT2Config", "huggingface", config.to_dict(), {}, arrays, cases)
    return made
