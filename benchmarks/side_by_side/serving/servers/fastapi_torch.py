"""FastAPI and PyTorch, as most people serve a model: a function that FastAPI runs in its threads."""

import sys

import fastapi
import pydantic
import uvicorn
from network import answer, loaded


class Request(pydantic.BaseModel):
    """A picture."""

    data: list[int]


def main() -> None:
    port, network = int(sys.argv[1]), loaded(sys.argv[2])
    app = fastapi.FastAPI()

    @app.post("/predict")
    def predict(request: Request) -> dict:
        return {"output": answer(network, request.data)}

    uvicorn.run(app, port=port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
