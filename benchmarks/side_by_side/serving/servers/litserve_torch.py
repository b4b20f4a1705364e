"""LitServe and PyTorch, with its batching."""

import sys

import litserve
import torch
from network import loaded


class Api(litserve.LitAPI):
    """Pictures in batches."""

    def setup(self, device: str) -> None:
        """Loads the network."""
        self.network = loaded(sys.argv[2])

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
        return list(output)

    def encode_response(self, output: torch.Tensor) -> dict:
        """An answer as JSON."""
        return {"output": output.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(Api(max_batch_size=64, batch_timeout=0.001), accelerator="cpu")
    server.run(port=int(sys.argv[1]), log_level="warning", generate_client_file=False)
