"""LitServe and PyTorch, with its batching.

Settings, after LitServe's documentation on batching and speed: WORKERS on the one device, as many API servers (its
default), `fast_queue=True` (ZeroMQ between them), batches of up to 64 which wait for a millisecond,
`torch.inference_mode`.
"""

import litserve
import torch
from network import loaded, told


class Api(litserve.LitAPI):
    """Pictures in batches."""

    def setup(self, device: str) -> None:
        """Loads the network."""
        self.network = loaded(told().weights, told().threads)

    def decode_request(self, request: dict) -> torch.Tensor:
        """A request as pixels."""
        return torch.tensor(request["data"], dtype=torch.uint8).reshape(28, 28)

    def batch(self, inputs: list) -> torch.Tensor:
        """Requests as one array."""
        return torch.stack(inputs)

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """The network."""
        with torch.inference_mode():
            return self.network(x)

    def unbatch(self, output: torch.Tensor) -> list:
        """An answer each."""
        return output.tolist()

    def encode_response(self, output: list) -> dict:
        """An answer as JSON."""
        return {"output": output}


if __name__ == "__main__":
    server = litserve.LitServer(
        Api(max_batch_size=64, batch_timeout=0.001),
        accelerator="cpu",
        devices=1,
        workers_per_device=told().workers,
        fast_queue=True,
    )
    server.run(host="127.0.0.1", port=told().port, log_level="warning", generate_client_file=False)
