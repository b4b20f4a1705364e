"""The hot paths: one folder an op, one public function each, several implementations behind it.

conv, conv_transpose    convolutions in one to three dimensions
max_pool, avg_pool      pooling
dense                   matrix products with bias and activation
batch_norm              batch normalization with the statistics of the batch
rnn, gru, lstm, slstm   recurrence over time
LayerNorm               normalization inside of an lstm
bidirectional           the same in both directions
explain                 which implementation runs, and why
plain_version           what a kernel in a traced program computes, in plain JAX
tracing_for             chooses for another platform or GPU than the one that is here
dividing_rows           runs each device's kernels on its rows in a program over a mesh
dividing_by_xla         leaves them to XLA's partitioner
"""

from llmasos_xla.kernels._dispatch import explain as explain
from llmasos_xla.kernels._dispatch import tracing_for as tracing_for
from llmasos_xla.kernels._operation import plain_version as plain_version
from llmasos_xla.kernels._rows import dividing_by_xla as dividing_by_xla
from llmasos_xla.kernels._rows import dividing_rows as dividing_rows
from llmasos_xla.kernels.activation import ACTIVATIONS as ACTIVATIONS
from llmasos_xla.kernels.activation import activation as activation
from llmasos_xla.kernels.conv.api import conv as conv
from llmasos_xla.kernels.conv.api import conv_transpose as conv_transpose
from llmasos_xla.kernels.dense.api import dense as dense
from llmasos_xla.kernels.norm.api import batch_norm as batch_norm
from llmasos_xla.kernels.pool.api import avg_pool as avg_pool
from llmasos_xla.kernels.pool.api import max_pool as max_pool
from llmasos_xla.kernels.rnn.api import bidirectional as bidirectional
from llmasos_xla.kernels.rnn.api import gru as gru
from llmasos_xla.kernels.rnn.api import lstm as lstm
from llmasos_xla.kernels.rnn.api import rnn as rnn
from llmasos_xla.kernels.rnn.api import slstm as slstm
from llmasos_xla.kernels.rnn.layer_norm import LayerNorm as LayerNorm
from llmasos_xla.kernels.scan.api import linear_scan as linear_scan
