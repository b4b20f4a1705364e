"""The kernels on a GPU: probed, checked, measured beside others, and tuned (benchmarks/gpu.py, benchmarks/tune.py).

problem         one problem of an op: its arrays, the ways to compute it, and the work that it is
ops/            the problems of each op, from the kernels' own lists of shapes
programs        the programs that are checked and timed, compiled several at a time
probes          what the device takes for a launch, a barrier, a step; kernels in probe_kernels
roofline        the least time that a problem can take
judge           how far a result may be from what is wanted; sample, which elements are compared
contestants/    the two processes on the device: JAX, and PyTorch
device          the same processes, seen from the command: asked, lost and started again
warm            processes that compile kernels ahead into Triton's cache
phases, tuning  what the command does, one after the other, within its minutes
records         what was found, written as it is found
tables          the same for readers
interpreted     kernels run by Triton's interpreter on the CPU: does all of this work?
annotations     in the place of jaxtyping, where that is not installed
"""

from side_by_side.gpu import annotations

annotations.install()
