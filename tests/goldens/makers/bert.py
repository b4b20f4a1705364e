"""BERT and its heads as transformers has them."""

import transformers
from makers._torch import Golden, seed, torch
from seeded import ids

SIZES = {
    "vocab_size": 37,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 20,
}


class Body(torch.nn.Module):
    """BertModel alone, its arrays with the first part that all heads give them."""

    def __init__(self, config):
        super().__init__()
        self.bert = transformers.BertModel(config)

    def forward(self, **inputs):
        return self.bert(**inputs).last_hidden_state


class Sentences(Body):
    """Mean over real steps and length 1, as sentence-transformers has them."""

    def forward(self, attention_mask, **inputs):
        hidden = super().forward(attention_mask=attention_mask, **inputs)
        mask = attention_mask[..., None].float()
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9))


def goldens():
    made = {}
    for name, kind, task, more in (
        ("bert_classes", transformers.BertForSequenceClassification, None, {"num_labels": 3}),
        ("bert_tokens", transformers.BertForTokenClassification, None, {"num_labels": 5, "hidden_act": "gelu_new"}),
        ("bert_words", transformers.BertForMaskedLM, None, {"hidden_act": "relu"}),
        ("bert_hidden", Body, "hidden", {"type_vocab_size": 3, "layer_norm_eps": 1e-5}),
        ("bert_sentences", Sentences, "embeddings", {}),
    ):
        config = transformers.BertConfig(**SIZES, **more)
        module = kind(config)
        arrays = seed(module)
        # Tied: the table is the output layer, and its bias has two names.
        arrays.pop("cls.predictions.decoder.bias", None)
        # The body has a pooler whatever is asked of it.
        kept = config.to_diff_dict() | {"architectures": [kind.__name__]} | {k: getattr(config, k) for k in SIZES}
        kept["id2label"] = {str(k): v for k, v in config.id2label.items()}
        options = {} if task is None else {"task": task}
        cases = [case(module, task, 11, (11, 7, 1)), case(module, task, 20, (20, 3))]
        if task != "embeddings":
            cases.append(plain(module))
        made[name] = Golden("BertConfig", "huggingface", kept, options, arrays, cases)
    return made


def case(module, task, length, lengths):
    """Rows of those real lengths, in two segments."""
    rows = ids(length, SIZES["vocab_size"], len(lengths), length)
    mask = torch.arange(length)[None] < torch.tensor(lengths)[:, None]
    types = (torch.arange(length)[None] >= torch.tensor(lengths)[:, None] // 2).long().expand(len(lengths), length)
    inputs = {"attention_mask": mask.int(), "token_type_ids": types}
    output = logits(module(input_ids=torch.from_numpy(rows).long(), **inputs))
    given = {"ids": rows, "attention_mask": mask.int().numpy(), "token_type_ids": types.int().numpy()}
    told = {} if output.ndim < 3 else {"valid": mask.numpy()}
    return {**given, "output": output.numpy(), **told}


def plain(module):
    """Ids and nothing else."""
    rows = ids(1, SIZES["vocab_size"], 2, 9)
    return {"ids": rows, "output": logits(module(input_ids=torch.from_numpy(rows).long())).numpy()}


def logits(output):
    return getattr(output, "logits", output)
