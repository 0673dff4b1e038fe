"""The least that serves a model: FastAPI reads JSON, a thread predicts each request by itself."""

import os
import socket
import sys
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from torch import Tensor

from common.data.batching import Padded
from common.model.predict import predict
from server.model_file import load_model
from server.prediction.predictor import model_path

app = FastAPI()
model, fusion = load_model(model_path(sys.argv[1]))
torch.set_num_threads(1)


def padded(rows: list[list[float]]) -> Padded:
    """Return one item as a batch."""
    values: Tensor = torch.tensor([rows])
    return Padded(values, torch.tensor([len(rows)]))


@app.post("/predict")
def answer(body: dict[str, Any]) -> dict[str, Any]:
    """Predict each item from what it has."""
    found = []
    for item in body["items"]:
        inputs = {name: padded(item[name]) for name in model.spec.features if item.get(name)}
        predicted = predict(model, fusion, inputs)
        std = None if predicted.std is None else float(predicted.std[0])
        found.append({"prediction": predicted.values[0].tolist(), "std": std})
    return {"predictions": found}


listener = socket.create_server(("127.0.0.1", 0))
print(f"http://127.0.0.1:{listener.getsockname()[1]}/ of {os.getpid()}", flush=True)
uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False)).run([listener])
