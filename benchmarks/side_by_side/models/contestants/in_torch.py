"""The originals: transformers on PyTorch, VGG and nanoGPT as plain modules."""

from collections.abc import Callable
from typing import Any

import torch

from side_by_side.models import weights
from side_by_side.models.rows import BLOCK, IMAGE, LENGTH, NEW, PROMPT, VOCAB, Row

STEPS = 20
"""Training steps a call."""


def job(row: Row, variant: str) -> Callable[[], Any]:
    """The row's call; "compiled" compiles the module, with padding to no other shape."""
    torch.manual_seed(0)
    kinds = {"resnet50": _resnet, "vgg16": _vgg, "bert": _bert, "gpt2": _gpt2, "nanogpt": _nanogpt}
    return kinds[row.kind](row, variant == "compiled")


def _filled(module: torch.nn.Module, prefix: str = "") -> torch.nn.Module:
    with torch.no_grad():
        for name, array in [*module.named_parameters(), *module.named_buffers()]:
            if array.dtype.is_floating_point:
                array.copy_(torch.from_numpy(weights.drawn(prefix + name, tuple(array.shape))))
    return module.eval()


def _inference(module: torch.nn.Module, compiled: bool, get: Callable[[Any], Any], **inputs: Any) -> Callable[[], Any]:
    run = torch.compile(module) if compiled else module

    def call() -> Any:
        with torch.inference_mode():
            return get(run(**inputs)).numpy()

    return call


def _resnet(row: Row, compiled: bool) -> Callable[[], Any]:
    from transformers import ResNetConfig, ResNetForImageClassification

    module = _filled(ResNetForImageClassification(ResNetConfig(num_labels=1000)))
    x = torch.from_numpy(weights.images(row.batch, *IMAGE)).permute(0, 3, 1, 2)
    return _inference(module, compiled, lambda out: out.logits, pixel_values=x)


class _VGG16(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers, cin = [], 3
        for depth, width in zip((2, 2, 3, 3, 3), (64, 128, 256, 512, 512), strict=True):
            for _ in range(depth):
                layers += [torch.nn.Conv2d(cin, width, 3, padding=1), torch.nn.ReLU(inplace=True)]
                cin = width
            layers.append(torch.nn.MaxPool2d(2))
        self.features = torch.nn.Sequential(*layers)
        linear, relu, drop = torch.nn.Linear, torch.nn.ReLU, torch.nn.Dropout
        self.classifier = torch.nn.Sequential(
            linear(512 * 49, 4096), relu(), drop(), linear(4096, 4096), relu(), drop(), linear(4096, 1000)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).flatten(1))


def _vgg(row: Row, compiled: bool) -> Callable[[], Any]:
    x = torch.from_numpy(weights.images(row.batch, *IMAGE)).permute(0, 3, 1, 2)
    return _inference(_filled(_VGG16()), compiled, lambda out: out, x=x)


def _bert(row: Row, compiled: bool) -> Callable[[], Any]:
    from transformers import BertConfig, BertModel

    module = _filled(BertModel(BertConfig(), add_pooling_layer=False), "bert.")
    ids = torch.from_numpy(weights.ids(30522, row.batch, LENGTH))
    mask = torch.ones_like(ids)
    return _inference(module, compiled, lambda out: out.last_hidden_state, input_ids=ids, attention_mask=mask)


def _gpt2(row: Row, compiled: bool) -> Callable[[], Any]:
    from transformers import GPT2Config, GPT2LMHeadModel

    module = _filled(GPT2LMHeadModel(GPT2Config()))
    ids = torch.from_numpy(weights.ids(50257, row.batch, PROMPT))
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    if compiled:
        module.forward = torch.compile(module.forward, dynamic=True)
        options["cache_implementation"] = "static"

    def call() -> Any:
        with torch.inference_mode():
            mask = torch.ones_like(ids)
            return module.generate(ids, attention_mask=mask, **options)[:, -NEW:].numpy()

    return call


class _Block(torch.nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.qkv, self.proj = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)
        self.up, self.down = torch.nn.Linear(width, 4 * width), torch.nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, time, width = x.shape
        q, k, v = (
            a.view(batch, time, self.heads, -1).transpose(1, 2) for a in self.qkv(self.ln_1(x)).split(width, dim=2)
        )
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).reshape(batch, time, width))
        return x + self.down(torch.nn.functional.gelu(self.up(self.ln_2(x)), approximate="tanh"))


class _NanoGPT(torch.nn.Module):
    """nanoGPT's model (Karpathy 2022) at its CPU configuration, dropout 0, head tied to the embedding."""

    def __init__(self, vocab: int, block: int, width: int = 128, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.wte, self.wpe = torch.nn.Embedding(vocab, width), torch.nn.Embedding(block, width)
        self.h = torch.nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.ln_f = torch.nn.LayerNorm(width)
        for array in self.parameters():
            if array.ndim == 2:
                torch.nn.init.normal_(array, std=0.02)

    def forward(self, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for block in self.h:
            x = block(x)
        logits = self.ln_f(x) @ self.wte.weight.T
        return torch.nn.functional.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


def _nanogpt(row: Row, compiled: bool) -> Callable[[], Any]:
    module = _NanoGPT(VOCAB, BLOCK)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1)
    ids = torch.from_numpy(weights.ids(VOCAB, row.batch * STEPS, BLOCK + 1))
    run = torch.compile(module) if compiled else module

    def call() -> Any:
        losses = []
        for step in range(STEPS):
            batch = ids[step * row.batch : (step + 1) * row.batch]
            loss = run(batch[:, :-1], batch[:, 1:])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return [float(torch.stack(losses).mean())]

    return call
