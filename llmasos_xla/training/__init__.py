"""Training: losses, metrics, optimizers, the step, the loop, what a fit reports, and scores of tasks."""

from llmasos_xla.training import losses as losses
from llmasos_xla.training import metrics as metrics
from llmasos_xla.training import optimizers as optimizers
from llmasos_xla.training import scores as scores
