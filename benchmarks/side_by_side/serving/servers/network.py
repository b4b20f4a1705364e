"""The network of the benchmark in PyTorch, for the peers; and what the benchmark tells them."""

import sys
from typing import NamedTuple

import numpy as np
import torch


class Told(NamedTuple):
    """The command line of a peer: `python file.py PORT WEIGHTS.npz WORKERS THREADS`."""

    port: int
    weights: str
    workers: int
    """Processes that compute."""
    threads: int
    """Of PyTorch in each of them."""


def told() -> Told:
    """What this process, or the one that started it, was called with."""
    port, weights, workers, threads = sys.argv[1:]
    return Told(int(port), weights, int(workers), int(threads))


class Network(torch.nn.Module):
    """Takes a list of pixels, gives the ten probabilities."""

    def __init__(self, path: str):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 32, 3)
        self.dense, self.head = torch.nn.Linear(13 * 13 * 32, 128), torch.nn.Linear(128, 10)
        with np.load(path) as found:
            weights = {name: torch.from_numpy(found[name]) for name in found.files}
        arrays = {
            "conv.weight": weights["conv2d/kernel"].permute(3, 2, 0, 1),
            "conv.bias": weights["conv2d/bias"],
            "dense.weight": weights["dense/kernel"].T,
            "dense.bias": weights["dense/bias"],
            "head.weight": weights["dense_1/kernel"].T,
            "head.bias": weights["dense_1/bias"],
        }
        self.load_state_dict(arrays)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Probabilities [rows, 10] of pixels [rows, 28, 28] in 0 to 255."""
        y = torch.relu(self.conv(x[:, None].float() / 255))
        y = torch.nn.functional.max_pool2d(y, 2).permute(0, 2, 3, 1).flatten(1)
        return torch.softmax(self.head(torch.relu(self.dense(y))), -1)


def loaded(weights: str, threads: int) -> Network:
    """The network, ready to answer on so many threads."""
    torch.set_num_threads(threads)
    network = Network(weights).eval()
    with torch.inference_mode():
        network(torch.zeros((1, 28, 28), dtype=torch.uint8))
    return network


def answer(network: Network, data: list) -> list:
    """The probabilities of one picture."""
    with torch.inference_mode():
        return network(torch.tensor(data, dtype=torch.uint8).reshape(1, 28, 28))[0].tolist()
