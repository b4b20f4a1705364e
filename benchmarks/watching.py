"""What a monitor costs: its share of one core at one sample a second, and what a fit loses that is watched."""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import threading
import time

import numpy as np

import llmasos_xla as lm
from llmasos_xla.runtime import Monitor


def share(monitor: Monitor, samples: int) -> float:
    """CPU seconds of a sample: the share of one core at one sample a second."""
    monitor.sample()
    began = time.thread_time()
    for _ in range(samples):
        monitor.sample()
    return (time.thread_time() - began) / samples


def in_real_time(seconds: int) -> float:
    """The same by the process' own clock, with waking and waiting, while nothing else happens in it."""
    with Monitor():
        time.sleep(1.5)
        began, cpu = time.perf_counter(), time.process_time()
        time.sleep(seconds)
        return (time.process_time() - cpu) / (time.perf_counter() - began)


def epoch_seconds(model: lm.Sequential, x: np.ndarray, y: np.ndarray, watched: bool) -> float:
    """Of one epoch of a fit, the monitor at ten times its pace."""
    if not watched:
        return model.fit(x, y, verbose=0).seconds[-1]
    with lm.runtime.watch(interval=0.1):
        return model.fit(x, y, verbose=0).seconds[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=9)
    chosen = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}")
    print(f"in real time               {in_real_time(chosen.seconds):.3%} of a core")

    monitor = Monitor()
    print(f"a process with nothing     {share(monitor, chosen.samples):.3%} of a core")
    waiting = threading.Event()
    threads = [threading.Thread(target=waiting.wait) for _ in range(100)]
    for thread in threads:
        thread.start()
    print(f"with 100 threads           {share(monitor, chosen.samples):.3%}")
    children = [subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) for _ in range(40)]
    print(f"and 40 children            {share(monitor, chosen.samples):.3%}")
    for child in children:
        monitor.follow(str(child.pid), child.pid)
    print(f"each followed by itself    {share(monitor, chosen.samples):.3%}")
    monitor.stop()
    waiting.set()
    for child in children:
        child.communicate(b"\n")

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(100_000, 64)).astype(np.float32), rng.integers(0, 4, 100_000)
    model = lm.Sequential([lm.layers.Dense(256, activation="relu"), lm.layers.Dense(4, activation="softmax")])
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(x, y, verbose=0)
    monitor = Monitor()
    print(f"with JAX and a model       {share(monitor, chosen.samples):.3%}")
    monitor.stop()
    ratios = []
    for number in range(chosen.rounds):
        # In turns, and each first in every other round.
        times = {watched: epoch_seconds(model, x, y, watched) for watched in (bool(number % 2), not number % 2)}
        ratios.append(times[True] / times[False])
    print(
        f"a fit that is watched at 10 samples a second takes {statistics.median(ratios):.3f} times as long "
        f"(median of {chosen.rounds}; {min(ratios):.3f} to {max(ratios):.3f})"
    )


if __name__ == "__main__":
    main()
