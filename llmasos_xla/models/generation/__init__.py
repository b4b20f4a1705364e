"""Writing token after token: what a model must define for it, and the loops that are the same for all of them.

    protocol    Generative: what a model that generates defines; Step, Cache, Memory
    attend      attention over a cache, for the modules of such models
    sampling    from logits to a token: greedy, temperature, top-k, top-p
    tokens      the loop of greedy decoding and sampling
    beams       the loop of beam search
    programs    the loops, compiled: one prefill a bucket of prompt lengths, one decode program

All of it is pure functions over arrays; texts and tokenizers stand in `lm.generate`.
"""

from llmasos_xla.models.generation.protocol import Cache as Cache
from llmasos_xla.models.generation.protocol import Generative as Generative
from llmasos_xla.models.generation.protocol import Memory as Memory
from llmasos_xla.models.generation.protocol import Step as Step
