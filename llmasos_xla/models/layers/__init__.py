"""Layers under the names Keras users know; each is a frozen specification that a model builds from.

    dense           Dense
    conv            Conv1D, Conv2D, Conv3D
    separable       DepthwiseConv2D, SeparableConv2D
    conv_transpose  Conv2DTranspose
    pooling         MaxPooling1D, MaxPooling2D, MaxPooling3D, AveragePooling1D, AveragePooling2D, AveragePooling3D
    global_pooling  GlobalAveragePooling1D, GlobalAveragePooling2D, GlobalAveragePooling3D, GlobalMaxPooling1D,
                    GlobalMaxPooling2D, GlobalMaxPooling3D
    shape           Flatten, Reshape, Permute, RepeatVector
    borders         ZeroPadding1D, ZeroPadding2D, ZeroPadding3D, Cropping1D, Cropping2D, Cropping3D, UpSampling1D,
                    UpSampling2D, UpSampling3D
    activations     Activation, ReLU, LeakyReLU, PReLU, ELU, Softmax, Rescaling
    regularization  Dropout, SpatialDropout1D, SpatialDropout2D, GaussianNoise, GaussianDropout
    augmentation    RandomFlip, RandomShift
    normalization   BatchNormalization, LayerNormalization, GroupNormalization
    rms             RMSNormalization
    embedding       Embedding, Masking
    log_mel         LogMel
    recurrent       SimpleRNN, GRU, LSTM
    minimal         MinGRU
    wrappers        Bidirectional, TimeDistributed
    attention       MultiHeadAttention
    decoder         Decoder
    mixture         MixtureOfExperts
    combine         Residual, Add, Average, Concatenate, Maximum, Minimum, Multiply, Subtract

`LAYERS` maps names to classes; `make_layer("dense", 3)` and `layer_from_json(layer.to_json())` build by name.
"""

from llmasos_xla.models.layers._base import LAYERS as LAYERS
from llmasos_xla.models.layers._base import Layer as Layer
from llmasos_xla.models.layers._base import layer_from_json as layer_from_json
from llmasos_xla.models.layers._base import make_layer as make_layer
from llmasos_xla.models.layers.activations import ELU as ELU
from llmasos_xla.models.layers.activations import Activation as Activation
from llmasos_xla.models.layers.activations import LeakyReLU as LeakyReLU
from llmasos_xla.models.layers.activations import PReLU as PReLU
from llmasos_xla.models.layers.activations import ReLU as ReLU
from llmasos_xla.models.layers.activations import Rescaling as Rescaling
from llmasos_xla.models.layers.activations import Softmax as Softmax
from llmasos_xla.models.layers.attention import MultiHeadAttention as MultiHeadAttention
from llmasos_xla.models.layers.augmentation import RandomFlip as RandomFlip
from llmasos_xla.models.layers.augmentation import RandomShift as RandomShift
from llmasos_xla.models.layers.borders import Cropping1D as Cropping1D
from llmasos_xla.models.layers.borders import Cropping2D as Cropping2D
from llmasos_xla.models.layers.borders import Cropping3D as Cropping3D
from llmasos_xla.models.layers.borders import UpSampling1D as UpSampling1D
from llmasos_xla.models.layers.borders import UpSampling2D as UpSampling2D
from llmasos_xla.models.layers.borders import UpSampling3D as UpSampling3D
from llmasos_xla.models.layers.borders import ZeroPadding1D as ZeroPadding1D
from llmasos_xla.models.layers.borders import ZeroPadding2D as ZeroPadding2D
from llmasos_xla.models.layers.borders import ZeroPadding3D as ZeroPadding3D
from llmasos_xla.models.layers.combine import Add as Add
from llmasos_xla.models.layers.combine import Average as Average
from llmasos_xla.models.layers.combine import Concatenate as Concatenate
from llmasos_xla.models.layers.combine import Maximum as Maximum
from llmasos_xla.models.layers.combine import Minimum as Minimum
from llmasos_xla.models.layers.combine import Multiply as Multiply
from llmasos_xla.models.layers.combine import Residual as Residual
from llmasos_xla.models.layers.combine import Subtract as Subtract
from llmasos_xla.models.layers.conv import Conv1D as Conv1D
from llmasos_xla.models.layers.conv import Conv2D as Conv2D
from llmasos_xla.models.layers.conv import Conv3D as Conv3D
from llmasos_xla.models.layers.conv_transpose import Conv2DTranspose as Conv2DTranspose
from llmasos_xla.models.layers.decoder import Decoder as Decoder
from llmasos_xla.models.layers.dense import Dense as Dense
from llmasos_xla.models.layers.embedding import Embedding as Embedding
from llmasos_xla.models.layers.embedding import Masking as Masking
from llmasos_xla.models.layers.global_pooling import GlobalAveragePooling1D as GlobalAveragePooling1D
from llmasos_xla.models.layers.global_pooling import GlobalAveragePooling2D as GlobalAveragePooling2D
from llmasos_xla.models.layers.global_pooling import GlobalAveragePooling3D as GlobalAveragePooling3D
from llmasos_xla.models.layers.global_pooling import GlobalMaxPooling1D as GlobalMaxPooling1D
from llmasos_xla.models.layers.global_pooling import GlobalMaxPooling2D as GlobalMaxPooling2D
from llmasos_xla.models.layers.global_pooling import GlobalMaxPooling3D as GlobalMaxPooling3D
from llmasos_xla.models.layers.log_mel import LogMel as LogMel
from llmasos_xla.models.layers.minimal import MinGRU as MinGRU
from llmasos_xla.models.layers.mixture import MixtureOfExperts as MixtureOfExperts
from llmasos_xla.models.layers.normalization import BatchNormalization as BatchNormalization
from llmasos_xla.models.layers.normalization import GroupNormalization as GroupNormalization
from llmasos_xla.models.layers.normalization import LayerNormalization as LayerNormalization
from llmasos_xla.models.layers.pooling import AveragePooling1D as AveragePooling1D
from llmasos_xla.models.layers.pooling import AveragePooling2D as AveragePooling2D
from llmasos_xla.models.layers.pooling import AveragePooling3D as AveragePooling3D
from llmasos_xla.models.layers.pooling import MaxPooling1D as MaxPooling1D
from llmasos_xla.models.layers.pooling import MaxPooling2D as MaxPooling2D
from llmasos_xla.models.layers.pooling import MaxPooling3D as MaxPooling3D
from llmasos_xla.models.layers.recurrent import GRU as GRU
from llmasos_xla.models.layers.recurrent import LSTM as LSTM
from llmasos_xla.models.layers.recurrent import SimpleRNN as SimpleRNN
from llmasos_xla.models.layers.regularization import Dropout as Dropout
from llmasos_xla.models.layers.regularization import GaussianDropout as GaussianDropout
from llmasos_xla.models.layers.regularization import GaussianNoise as GaussianNoise
from llmasos_xla.models.layers.regularization import SpatialDropout1D as SpatialDropout1D
from llmasos_xla.models.layers.regularization import SpatialDropout2D as SpatialDropout2D
from llmasos_xla.models.layers.rms import RMSNormalization as RMSNormalization
from llmasos_xla.models.layers.separable import DepthwiseConv2D as DepthwiseConv2D
from llmasos_xla.models.layers.separable import SeparableConv2D as SeparableConv2D
from llmasos_xla.models.layers.shape import Flatten as Flatten
from llmasos_xla.models.layers.shape import Permute as Permute
from llmasos_xla.models.layers.shape import RepeatVector as RepeatVector
from llmasos_xla.models.layers.shape import Reshape as Reshape
from llmasos_xla.models.layers.wrappers import Bidirectional as Bidirectional
from llmasos_xla.models.layers.wrappers import TimeDistributed as TimeDistributed
