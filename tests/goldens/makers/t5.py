"""T5ForConditionalGeneration: version 1.0 with its tied table, version 1.1 with a gate and a head of its own."""

import transformers
from makers._torch import Golden, seed, torch
from seeded import ids

SIZES = {
    "vocab_size": 31,
    "d_model": 20,
    "d_kv": 6,
    "d_ff": 28,
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 10,
}


def goldens():
    made = {}
    for name, more in (
        ("t5", {"num_layers": 2}),
        (
            "t5_gated",
            {
                "num_layers": 1,
                "num_decoder_layers": 2,
                "feed_forward_proj": "gated-gelu",
                "tie_word_embeddings": False,
            },
        ),
    ):
        config = transformers.T5Config(**SIZES, **more, decoder_start_token_id=0)
        module = transformers.T5ForConditionalGeneration(config)
        if name == "t5_gated":
            # Published files have two arrays here.
            module.lm_head.weight = torch.nn.Parameter(module.lm_head.weight.clone())
        arrays = seed(module)
        kept = {**SIZES, **more, "architectures": ["T5ForConditionalGeneration"]}
        made[name] = Golden("T5Config", "huggingface", kept, {}, arrays, [padded(module), plain(module)])
    return made


def padded(module):
    """Rows of different lengths on both sides, longer than the farthest distance that counts."""
    rows, steps = ids(0, 31, 3, 17), ids(1, 31, 3, 13)
    mask = torch.arange(17)[None] < torch.tensor([17, 9, 1])[:, None]
    of_steps = torch.arange(13)[None] < torch.tensor([5, 13, 1])[:, None]
    logits = module(
        input_ids=torch.from_numpy(rows).long(),
        attention_mask=mask.int(),
        decoder_input_ids=torch.from_numpy(steps).long(),
        decoder_attention_mask=of_steps.int(),
    ).logits
    given = {"ids": rows, "attention_mask": mask.int().numpy(), "decoder_input_ids": steps}
    given["decoder_attention_mask"] = of_steps.int().numpy()
    greedy = module.generate(
        torch.from_numpy(rows).long(), attention_mask=mask.int(), max_new_tokens=12, do_sample=False,
        eos_token_id=None, use_cache=False,
    )  # fmt: skip
    return {**given, "output": logits.numpy(), "valid": of_steps.numpy(), "greedy": greedy[:, 1:].numpy()}


def plain(module):
    """No masks."""
    rows, steps = ids(2, 31, 1, 7), ids(3, 31, 1, 3)
    logits = module(input_ids=torch.from_numpy(rows).long(), decoder_input_ids=torch.from_numpy(steps).long()).logits
    return {"ids": rows, "decoder_input_ids": steps, "output": logits.numpy()}
