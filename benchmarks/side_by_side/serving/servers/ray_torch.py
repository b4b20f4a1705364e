"""Ray Serve and PyTorch, with its batching.

Settings, after Ray's documentation on high throughput, performance and batching: RAY_SERVE_THROUGHPUT_OPTIMIZED and
HAProxy in front (RAY_SERVE_ENABLE_HA_PROXY, of `ray[serve]` itself); WORKERS replicas, a core for each thread;
`@serve.batch` up to 64 requests which wait for a millisecond; max_ongoing_requests=256, so that 64 clients are let in;
`torch.inference_mode`; no access log, no dashboard.
"""

import os
import time

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1")
os.environ.setdefault("RAY_SERVE_ENABLE_HA_PROXY", "1")

import ray
import torch
from network import Told, loaded, told
from ray import serve
from starlette.requests import Request


@serve.deployment(max_ongoing_requests=256, logging_config={"enable_access_log": False})
class Digits:
    """Pictures in batches."""

    def __init__(self, told: Told):
        self.network = loaded(told.weights, told.threads)

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
    here = {"env_vars": {"PYTHONPATH": os.path.dirname(os.path.abspath(__file__))}}
    cores = len(os.sched_getaffinity(0))
    ray.init(num_cpus=cores, include_dashboard=False, log_to_driver=False, runtime_env=here)
    serve.start(http_options={"host": "127.0.0.1", "port": told().port})
    digits = Digits.options(num_replicas=told().workers, ray_actor_options={"num_cpus": told().threads})
    serve.run(digits.bind(told()), route_prefix="/predict")
    while True:
        time.sleep(1)


if __name__ == "__main__":
    main()
