"""Flower's own FedAvg in its simulation, on Ray."""

import logging
import os
from typing import Any

import ray
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from work import Work

logging.getLogger("flwr").setLevel(logging.WARNING)
work, rounds = Work.read()
on_client = ClientApp()


@on_client.train()
def train(message: Message, context: Context) -> Message:
    """Train the model that came on the items of this node."""
    torch.set_num_threads(1)
    client = work.clients[int(context.node_config["partition-id"])]
    model = work.model()
    arrays: Any = message.content["arrays"]
    model.load_state_dict(arrays.to_torch_state_dict())
    work.train(model, client)
    metrics = MetricRecord({"num-examples": len(client.labels)})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content, reply_to=message)


on_server = ServerApp()


@on_server.main()
def main(grid: Grid, _: Context) -> None:
    """Train, and evaluate after each round."""
    model = work.model()

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        model.load_state_dict(arrays.to_torch_state_dict())
        if server_round:
            work.tell(model)
        return MetricRecord({})

    strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=len(work.clients))
    arrays = ArrayRecord(model.state_dict())
    strategy.start(grid, arrays, num_rounds=rounds, evaluate_fn=evaluate)


resources: Any = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
run_simulation(on_server, on_client, len(work.clients), backend_config=resources)
ray.shutdown()
os._exit(0)
