"""RT-DETR by its sizes."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from flax import nnx

from llmasos_xla.errors import unknown
from llmasos_xla.models.config import Config
from llmasos_xla.models.layers._base import Shape
from llmasos_xla.models.layers._checks import known_channels, number, sample_rank
from llmasos_xla.models.pretrained.names import Name
from llmasos_xla.models.rtdetr.backbone import REDUCTION
from llmasos_xla.models.rtdetr.names import huggingface_names
from llmasos_xla.models.rtdetr.network import Network

_REFUSED = {
    "normalize_before": False,
    "eval_size": None,
    "learn_initial_query": False,
    "with_box_refine": True,
    "dropout": 0.0,
    "activation_dropout": 0.0,
    "attention_dropout": 0.0,
}
_REFUSED_OF_BACKBONE = {"hidden_act": "relu", "downsample_in_first_stage": False, "downsample_in_bottleneck": False}
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh"}


@dataclasses.dataclass(frozen=True)
class RTDETRConfig(Config):
    """RT-DETR (Zhao et al. 2023, "DETRs beat YOLOs on real-time object detection").

    float images [batch, height, width, channels] in 0..1 -> `Detections`: logits [batch, queries, classes] and boxes
    [batch, queries, 4] (center x, center y, width, height as shares of the image), of the last decoder layer, and those
    of the layers before it for training ("detection" is the loss). Any size whose maps have `queries` positions will
    do; the published weights were trained on 640 x 640.

    Args:
        depths: blocks of each of the backbone's stages (ResNet-D).
        widths: features of each stage.
        bottleneck: whether blocks are bottlenecks of three convolutions or have two of 3 x 3.
        stem: features ahead of the stages.
        frozen_norms: whether the backbone's batch normalizations are constants, as for fine-tuning; train from scratch
            with False.
        maps: how many of the last stages are read.
        classes: number of logits of a query.
        queries: boxes an image.
        width: features in the decoder.
        depth: decoder layers.
        heads: attention heads of the decoder.
        points: points of a map that a head reads.
        hidden: features inside of the decoder's feed-forward networks.
        encoder_width: features in the hybrid encoder, a multiple of 4.
        encoder_depth: attention layers over each of the attended maps.
        encoder_heads: their heads.
        encoder_hidden: features inside of their feed-forward networks.
        attended: which maps attention runs over, counted from the finest.
        expansion: features inside of fusions / encoder_width.
        activation: of the encoder's convolutions.
        encoder_activation: of the encoder's feed-forward networks.
        decoder_activation: of the decoder's.
        temperature: of the encoder's positions.
        epsilon: of the encoder's batch normalizations.
        norm_epsilon: of layer normalizations.

    >>> config = RTDETRConfig.rtdetr_r18(classes=3, queries=60)
    >>> config.output_shape((240, 320, 3))
    (60, 3)
    """

    depths: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (256, 512, 1024, 2048)
    bottleneck: bool = True
    stem: int = 64
    frozen_norms: bool = True
    maps: int = 3
    classes: int = 80
    queries: int = 300
    width: int = 256
    depth: int = 6
    heads: int = 8
    points: int = 4
    hidden: int = 1024
    encoder_width: int = 256
    encoder_depth: int = dataclasses.field(default=1, metadata={"checked": False})
    encoder_heads: int = 8
    encoder_hidden: int = 1024
    attended: tuple[int, ...] = (2,)
    expansion: float = 1.0
    activation: str = "silu"
    encoder_activation: str = "gelu"
    decoder_activation: str = "relu"
    temperature: float = 10000.0
    epsilon: float = 1e-5
    norm_epsilon: float = 1e-5

    family: ClassVar[str] = "rtdetr"
    presets: ClassVar[Mapping[str, str]] = {
        **{f"rtdetr_r{n}": f"rtdetr_r{n}" for n in (18, 34, 50, 101)},
        "detr": "rtdetr_r18",
    }
    huggingface: ClassVar[tuple[str, ...]] = ("rt_detr",)
    ignored: ClassVar[tuple[str, ...]] = (
        r"num_batches_tracked$",
        r"^model\.denoising_class_embed\.",
        r"^model\.(anchors|valid_mask)$",
        # The decoder's heads a second time, under their old names.
        r"^(class|bbox)_embed\.",
    )

    @classmethod
    def rtdetr_r18(cls, **sizes: Any) -> "RTDETRConfig":
        """On ResNet-18-D, three decoder layers: 20.2 million parameters."""
        return cls(**{**_BASIC, "depths": (2, 2, 2, 2), "depth": 3, **sizes})

    @classmethod
    def rtdetr_r34(cls, **sizes: Any) -> "RTDETRConfig":
        """On ResNet-34-D, four decoder layers."""
        return cls(**{**_BASIC, "depths": (3, 4, 6, 3), "depth": 4, **sizes})

    @classmethod
    def rtdetr_r50(cls, **sizes: Any) -> "RTDETRConfig":
        """On ResNet-50-D, six decoder layers."""
        return cls(**sizes)

    @classmethod
    def rtdetr_r101(cls, **sizes: Any) -> "RTDETRConfig":
        """On ResNet-101-D, with a wider encoder."""
        return cls(**{"depths": (3, 4, 23, 3), "encoder_width": 384, "encoder_hidden": 2048, **sizes})

    @classmethod
    def from_huggingface(cls, config: Mapping[str, Any], **sizes: Any) -> "RTDETRConfig":
        """Of RTDetrForObjectDetection's config.json."""
        backbone = config.get("backbone_config") or {}
        if backbone.get("model_type", "rt_detr_resnet") != "rt_detr_resnet":
            raise ValueError(f"{cls.__name__}: the backbone {backbone['model_type']!r} is not built here")
        for given, refused in ((config, _REFUSED), (backbone, _REFUSED_OF_BACKBONE)):
            for name, usual in refused.items():
                if given.get(name, usual) != usual:
                    raise ValueError(f"{cls.__name__}: {name}={given[name]!r} of the config.json is not built here")
        depths = tuple(backbone.get("depths", (3, 4, 6, 3)))
        maps = len(config.get("encoder_in_channels", (512, 1024, 2048)))
        read = list(backbone.get("out_indices") or range(len(depths) + 1 - maps, len(depths) + 1))
        if read != list(range(len(depths) + 1 - maps, len(depths) + 1)) or config.get("num_feature_levels", 3) != maps:
            raise ValueError(
                f"{cls.__name__}: built here are detectors on the last stages' maps, as many as feature levels; the "
                f"config.json has out_indices {read} and {config.get('num_feature_levels', 3)} levels for {maps} maps"
            )
        labels = config.get("id2label")
        given = {
            "depths": depths,
            "widths": tuple(backbone.get("hidden_sizes", (256, 512, 1024, 2048))),
            "bottleneck": backbone.get("layer_type", "bottleneck") == "bottleneck",
            "stem": backbone.get("embedding_size", 64),
            "frozen_norms": config.get("freeze_backbone_batch_norms", True),
            "maps": maps,
            "classes": len(labels) if labels else config.get("num_labels", 2),
            "attended": tuple(config.get("encode_proj_layers", (2,))),
            "temperature": float(config.get("positional_encoding_temperature", 10000)),
            **{ours: config.get(theirs, usual) for ours, (theirs, usual) in _FIELDS.items()},
            **{
                ours: _activation(cls.__name__, config.get(theirs, usual))
                for ours, (theirs, usual) in _ACTIVATION_FIELDS.items()
            },
        }
        return cls(**{**given, **sizes})

    def check(self) -> None:
        """Refuses sizes that do not divide, and maps that are not there."""
        self._set(depths=tuple(self.depths), widths=tuple(self.widths), attended=tuple(self.attended))
        if len(self.depths) != len(self.widths):
            raise ValueError(f"{self.who}: {len(self.depths)} depths came for {len(self.widths)} widths")
        if not 1 < self.maps <= len(self.depths):
            raise ValueError(f"{self.who}: maps wants 2 to {len(self.depths)}, the stages, got {self.maps}")
        if wrong := [at for at in self.attended if not 0 <= at < self.maps]:
            raise ValueError(f"{self.who}: attended names map {wrong[0]}; there are 0 to {self.maps - 1}")
        for name, heads in (("width", self.heads), ("encoder_width", self.encoder_heads)):
            if getattr(self, name) % heads:
                raise ValueError(f"{self.who}: {name}={getattr(self, name)} does not divide into {heads} heads")
        if self.encoder_width % 4:
            raise ValueError(f"{self.who}: encoder_width wants a multiple of 4, got {self.encoder_width}")
        if self.stem % 2 or (self.bottleneck and any(w % REDUCTION for w in self.widths)):
            raise ValueError(
                f"{self.who}: stem={self.stem} wants to be even, and widths={self.widths} of bottlenecks multiples of "
                f"{REDUCTION}"
            )
        for name in ("epsilon", "norm_epsilon", "expansion"):
            if number(self.who, name, getattr(self, name), least=0.0) == 0:
                raise ValueError(f"{self.who}: {name} wants a positive number, got 0")

    @property
    def fusion_width(self) -> int:
        """Features inside of fusions."""
        return int(self.encoder_width * self.expansion)

    def sample_shape(self) -> Shape:
        """Images of any size with three channels."""
        return (None, None, 3)

    def output_shape(self, shape: Shape) -> Shape:
        """That of the logits, (queries, classes)."""
        sample_rank(self.who, shape, "height, width, channels")
        known_channels(self.who, shape)
        return (self.queries, self.classes)

    def several(self, shape: Shape) -> dict[str, Shape]:
        """Those of `Detections` that are of use after training."""
        return {"logits": self.output_shape(shape), "boxes": (self.queries, 4)}

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """The module."""
        self.output_shape(shape)
        return Network(self, shape, rngs)

    def names(self, source: str) -> Iterator[Name]:
        """Hugging Face's names ("huggingface"), of RTDetrForObjectDetection's files."""
        if source != "huggingface":
            yield from super().names(source)  # raises
        yield from huggingface_names(self)


_BASIC = {"widths": (64, 128, 256, 512), "bottleneck": False, "frozen_norms": False, "expansion": 0.5}

_FIELDS = {
    "queries": ("num_queries", 300),
    "width": ("d_model", 256),
    "depth": ("decoder_layers", 6),
    "heads": ("decoder_attention_heads", 8),
    "points": ("decoder_n_points", 4),
    "hidden": ("decoder_ffn_dim", 1024),
    "encoder_width": ("encoder_hidden_dim", 256),
    "encoder_depth": ("encoder_layers", 1),
    "encoder_heads": ("encoder_attention_heads", 8),
    "encoder_hidden": ("encoder_ffn_dim", 1024),
    "expansion": ("hidden_expansion", 1.0),
    "epsilon": ("batch_norm_eps", 1e-5),
    "norm_epsilon": ("layer_norm_eps", 1e-5),
}
_ACTIVATION_FIELDS = {
    "activation": ("activation_function", "silu"),
    "encoder_activation": ("encoder_activation_function", "gelu"),
    "decoder_activation": ("decoder_activation_function", "relu"),
}


def _activation(who: str, name: str) -> str:
    if name not in _ACTIVATIONS:
        raise unknown(who, "activation", name, _ACTIVATIONS)
    return _ACTIVATIONS[name]
