"""How Hugging Face's files call RT-DETR's arrays."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from llmasos_xla.models.pretrained.names import (
    CONV2D,
    SAME,
    Name,
    batch_norm,
    dense,
    heads_bias,
    heads_in,
    heads_out,
    layer_norm,
)
from llmasos_xla.models.rtdetr.backbone import projects
from llmasos_xla.models.rtdetr.encoder import FUSIONS

if TYPE_CHECKING:
    from llmasos_xla.models.rtdetr.config import RTDETRConfig


def huggingface_names(spec: "RTDETRConfig") -> Iterator[Name]:
    """The table; transformers 5 renames some of them as it reads a file, and back as it writes one."""
    yield from _backbone(spec)
    for i in range(spec.maps):
        yield from _conv_norm(f"inputs/{i}", f"model.encoder_input_proj.{i}", "0", "1")
        yield from _conv_norm(f"memory/{i}", f"model.decoder_input_proj.{i}", "0", "1")
    yield from _encoder(spec)
    yield from dense("choice/features", "model.enc_output.0")
    yield from layer_norm("choice/features_norm", "model.enc_output.1")
    yield from dense("choice/classes", "model.enc_score_head")
    yield from _perceptron("choice/boxes", "model.enc_bbox_head", 3)
    yield from _decoder(spec)


def _backbone(spec: "RTDETRConfig") -> Iterator[Name]:
    root = "model.backbone.model"
    for i in range(3):
        yield from _conv_norm(f"backbone/stem/{i}", f"{root}.embedder.embedder.{i}", "convolution", "normalization")
    cin = spec.stem
    for stage, (depth, width) in enumerate(zip(spec.depths, spec.widths, strict=True)):
        for block in range(depth):
            here, there = f"backbone/stages/{stage}/{block}", f"{root}.encoder.stages.{stage}.layers.{block}"
            for i in range(3 if spec.bottleneck else 2):
                yield from _conv_norm(f"{here}/convs/{i}", f"{there}.layer.{i}", "convolution", "normalization")
            strides = 2 if stage and not block else 1
            projected, pooled = projects(spec.bottleneck, cin, width, strides, not block)
            if projected:
                # Behind an average it is the second of a pair.
                short = f"{there}.shortcut.1" if _paired(spec, cin, width, pooled) else f"{there}.shortcut"
                yield from _conv_norm(f"{here}/shortcut", short, "convolution", "normalization")
            cin = width


def _paired(spec: "RTDETRConfig", cin: int, cout: int, pooled: bool) -> bool:
    return pooled if spec.bottleneck else cin != cout


def _encoder(spec: "RTDETRConfig") -> Iterator[Name]:
    for i in range(len(spec.attended)):
        for j in range(spec.encoder_depth):
            here, there = f"encoder/layers/{i}/{j}", f"model.encoder.encoder.{i}.layers.{j}"
            yield from _attention(f"{here}/attention", f"{there}.self_attn", spec.encoder_heads)
            yield from layer_norm(f"{here}/attention_norm", f"{there}.self_attn_layer_norm")
            yield from _feed_forward(here, there)
    for i in range(spec.maps - 1):
        for ours, theirs in (("laterals", "lateral_convs"), ("downs", "downsample_convs")):
            yield from _conv_norm(f"encoder/{ours}/{i}", f"model.encoder.{theirs}.{i}")
        for ours, theirs in (("fpn", "fpn_blocks"), ("pan", "pan_blocks")):
            here, there = f"encoder/{ours}/{i}", f"model.encoder.{theirs}.{i}"
            yield from _conv_norm(f"{here}/left", f"{there}.conv1")
            yield from _conv_norm(f"{here}/right", f"{there}.conv2")
            for j in range(FUSIONS):
                yield from _conv_norm(f"{here}/blocks/{j}/wide", f"{there}.bottlenecks.{j}.conv1")
                yield from _conv_norm(f"{here}/blocks/{j}/narrow", f"{there}.bottlenecks.{j}.conv2")
            if spec.fusion_width != spec.encoder_width:
                yield from _conv_norm(f"{here}/output", f"{there}.conv3")


def _decoder(spec: "RTDETRConfig") -> Iterator[Name]:
    yield from _perceptron("decoder/positions", "model.decoder.query_pos_head", 2)
    for i in range(spec.depth):
        here, there = f"decoder/layers/{i}", f"model.decoder.layers.{i}"
        yield from _attention(f"{here}/attention", f"{there}.self_attn", spec.heads)
        yield from layer_norm(f"{here}/attention_norm", f"{there}.self_attn_layer_norm")
        cross = f"{here}/cross_attention"
        yield from dense(f"{cross}/offsets", f"{there}.encoder_attn.sampling_offsets")
        yield from dense(f"{cross}/weights", f"{there}.encoder_attn.attention_weights")
        yield from _heads(f"{cross}/value", f"{there}.encoder_attn.value_proj", spec.heads)
        yield Name(f"{cross}/output/kernel", f"{there}.encoder_attn.output_proj.weight", heads_out(spec.heads))
        yield Name(f"{cross}/output/bias", f"{there}.encoder_attn.output_proj.bias", SAME)
        yield from layer_norm(f"{here}/cross_attention_norm", f"{there}.encoder_attn_layer_norm")
        yield from _feed_forward(here, there)
        yield from dense(f"decoder/classes/{i}", f"model.decoder.class_embed.{i}")
        yield from _perceptron(f"decoder/boxes/{i}", f"model.decoder.bbox_embed.{i}", 3)


def _conv_norm(ours: str, theirs: str, conv: str = "conv", norm: str = "norm") -> Iterator[Name]:
    yield Name(f"{ours}/kernel", f"{theirs}.{conv}.weight", CONV2D)
    yield from batch_norm(f"{ours}/norm", f"{theirs}.{norm}")


def _attention(ours: str, theirs: str, heads: int) -> Iterator[Name]:
    for name in ("query", "key", "value"):
        yield from _heads(f"{ours}/{name}", f"{theirs}.{name[0]}_proj", heads)
    yield Name(f"{ours}/output/kernel", f"{theirs}.out_proj.weight", heads_out(heads))
    yield Name(f"{ours}/output/bias", f"{theirs}.out_proj.bias", SAME)


def _heads(ours: str, theirs: str, heads: int) -> Iterator[Name]:
    yield Name(f"{ours}/kernel", f"{theirs}.weight", heads_in(heads))
    yield Name(f"{ours}/bias", f"{theirs}.bias", heads_bias(heads))


def _feed_forward(ours: str, theirs: str) -> Iterator[Name]:
    yield from dense(f"{ours}/mlp/up", f"{theirs}.fc1")
    yield from dense(f"{ours}/mlp/down", f"{theirs}.fc2")
    yield from layer_norm(f"{ours}/mlp_norm", f"{theirs}.final_layer_norm")


def _perceptron(ours: str, theirs: str, depth: int) -> Iterator[Name]:
    for i in range(depth):
        yield from dense(f"{ours}/layers/{i}", f"{theirs}.layers.{i}")
