"""Finds the sizes with which the kernels run fastest on the GPU at hand, and writes `kernels/tuned/<device>.json`.

python benchmarks/tune.py                    # the same as `gpu.py --tune`
python benchmarks/tune.py --minutes 20
"""

import sys

import gpu

if __name__ == "__main__":
    gpu.main(["--tune", *sys.argv[1:]])
