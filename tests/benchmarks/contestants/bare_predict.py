"""A loop of PyTorch over a shard: batches in order through the model, predictions into a CSV."""

import csv
import sys
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file

from common.data.batching import pad
from common.model.predict import predict
from server.model_file import load_model
from server.prediction.predictor import BATCH, model_path

model, fusion = load_model(model_path(sys.argv[1]))
torch.set_num_threads(1)
arrays = load_file(sys.argv[2])
ends = [0, *arrays["ids.ends"].tolist()]
content = arrays["ids"].numpy().tobytes()
ids = [content[first:last].decode() for first, last in pairwise(ends)]
with Path(sys.argv[3]).open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["id", "prediction", "std"])
    for first in range(0, len(ids), BATCH):
        part = slice(first, first + BATCH)
        inputs = {}
        for name in model.spec.features:
            if f"{name}.values" in arrays:
                own = (arrays[f"{name}.{what}"][part] for what in ("starts", "lengths"))
                inputs[name] = pad(arrays[f"{name}.values"], *own)
        predicted = predict(model, fusion, inputs)
        columns = [ids[part], predicted.values.tolist(), predicted.std.tolist()]
        writer.writerows(zip(*columns, strict=True))
