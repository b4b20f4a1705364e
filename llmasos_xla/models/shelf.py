"""The models of the shelf by name: `lm.models.resnet50(...)` looks here."""

from collections.abc import Callable

from llmasos_xla.models.bert import BertConfig
from llmasos_xla.models.cnn import CNNConfig
from llmasos_xla.models.config import Config
from llmasos_xla.models.ctc import CTCConfig
from llmasos_xla.models.gpt2 import GPT2Config
from llmasos_xla.models.llama import LlamaConfig
from llmasos_xla.models.mobilenet import MobileNetV2Config
from llmasos_xla.models.mtcnn import MTCNNConfig
from llmasos_xla.models.parakeet import ParakeetConfig
from llmasos_xla.models.recurrent_lm import RecurrentLMConfig
from llmasos_xla.models.resnet import ResNetConfig
from llmasos_xla.models.rtdetr.config import RTDETRConfig
from llmasos_xla.models.seq2seq import Seq2SeqConfig
from llmasos_xla.models.silero import SileroVADConfig
from llmasos_xla.models.t5 import T5Config
from llmasos_xla.models.unet import UNetConfig
from llmasos_xla.models.vgg import VGGConfig
from llmasos_xla.models.vit import ViTConfig
from llmasos_xla.models.whisper import WhisperConfig

FAMILIES: tuple[type[Config], ...] = (
    BertConfig,
    GPT2Config,
    LlamaConfig,
    CTCConfig,
    CNNConfig,
    MobileNetV2Config,
    MTCNNConfig,
    ResNetConfig,
    RTDETRConfig,
    ParakeetConfig,
    RecurrentLMConfig,
    Seq2SeqConfig,
    SileroVADConfig,
    T5Config,
    UNetConfig,
    VGGConfig,
    WhisperConfig,
    ViTConfig,
)
"""The architectures, a class each."""

SHELF: dict[str, Callable[..., Config]] = {
    name: getattr(family, method) for family in FAMILIES for name, method in family.presets.items()
}
"""Name -> what makes that configuration."""
