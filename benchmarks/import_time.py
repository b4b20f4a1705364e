"""What `import llmasos_xla` costs over `import jax`: medians of fresh processes, in turns."""

import statistics
import subprocess
import sys
import time

ROUNDS = 10


def seconds(code: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - started


def main() -> None:
    alone, both = [], []
    for _ in range(ROUNDS):
        alone.append(seconds("import jax"))
        both.append(seconds("import jax, llmasos_xla"))
    extra = [b - a for a, b in zip(alone, both)]
    print(f"import jax               {statistics.median(alone):.3f} s")
    print(f"import jax, llmasos_xla  {statistics.median(both):.3f} s")
    print(f"difference               {statistics.median(extra):.3f} s (median of {ROUNDS} pairs)")


if __name__ == "__main__":
    main()
