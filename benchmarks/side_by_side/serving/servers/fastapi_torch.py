"""FastAPI and PyTorch, as most people serve a model.

Settings, after FastAPI's documentation on workers, concurrency and responses: WORKERS processes of uvicorn (with uvloop
and httptools, which `uvicorn[standard]` brings), an endpoint without `async`, which runs in the thread pool, since
PyTorch blocks; requests and answers as Pydantic models, which are checked and written in Rust; `torch.inference_mode`;
no access log.
"""

import fastapi
import pydantic
import uvicorn
from network import answer, loaded, told


class Request(pydantic.BaseModel):
    """A picture."""

    data: list[int]


class Answer(pydantic.BaseModel):
    """Its probabilities."""

    output: list[float]


def application() -> fastapi.FastAPI:
    """One worker's application."""
    network = loaded(told().weights, told().threads)
    app = fastapi.FastAPI()

    @app.post("/predict")
    def predict(request: Request) -> Answer:
        return Answer(output=answer(network, request.data))

    return app


if __name__ == "__main__":
    uvicorn.run(
        "fastapi_torch:application",
        factory=True,
        port=told().port,
        workers=told().workers,
        log_level="warning",
        access_log=False,
    )
