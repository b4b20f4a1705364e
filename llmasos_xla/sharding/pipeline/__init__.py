"""Pipelines: layers in stages on different devices, micro-batches passing through them.

schedule   one_f_one_b: the schedule, and the gradients that it gives
stages     what each stage runs at a tick
carrier    what passes from stage to stage, as one flat array
flat       arrays of different stages as one array over the mesh axis "pipe"
check      what a pipeline refuses
waiting    whether a compiled pipeline's stages would wait for each other for ever
"""

from llmasos_xla.sharding.pipeline.schedule import bubble as bubble
from llmasos_xla.sharding.pipeline.schedule import default_microbatches as default_microbatches
from llmasos_xla.sharding.pipeline.schedule import one_f_one_b as one_f_one_b
from llmasos_xla.sharding.pipeline.schedule import waits_for_all as waits_for_all
