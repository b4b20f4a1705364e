"""Ray Serve and PyTorch, one replica, with its batching."""

import os
import sys
import time

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
import torch
from network import loaded
from ray import serve
from starlette.requests import Request


@serve.deployment(max_ongoing_requests=256)
class Digits:
    """Pictures in batches."""

    def __init__(self, path: str):
        self.network = loaded(path)

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.001)
    async def predict(self, pictures: list) -> list:
        """The network."""
        with torch.inference_mode():
            found = self.network(torch.tensor(pictures, dtype=torch.uint8).reshape(-1, 28, 28))
        return found.tolist()

    async def __call__(self, request: Request) -> dict:
        """One request."""
        return {"output": await self.predict((await request.json())["data"])}


def main() -> None:
    sys.path.insert(0, os.path.dirname(__file__))
    here = {"env_vars": {"PYTHONPATH": os.path.dirname(os.path.abspath(__file__))}}
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, runtime_env=here)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Digits.bind(sys.argv[2]), route_prefix="/predict")
    while True:
        time.sleep(1)


if __name__ == "__main__":
    main()
