"""All clients on this machine: Flower's simulation runtime on Ray."""

import logging
import socket
import warnings
from functools import partial

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from client.app import given_config, make_client_app
from common.errors import UserError
from server.run.federation import federate
from server.run.run import Run
from server.runtimes.local import clients_at_once, prepare_machine


def simulate(run: Run) -> None:
    """Execute a prepared run with one simulated SuperNode for each client."""
    prepare_machine(run)
    runtime, server_app = run.config.runtime, ServerApp()

    @server_app.main()
    def execute(grid: Grid, context: Context) -> None:
        federate(run, grid, ours=True)

    gpus = runtime.client_gpus
    if gpus is None:
        # The clients that run at once share the GPUs; those of a cluster are not known here.
        each = torch.cuda.device_count() / clients_at_once(runtime)
        gpus = min(each, 1.0) if runtime.ray.address is None else 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if runtime.ray.address is not None:
            join_cluster(run)
        run_simulation(
            server_app=server_app,
            client_app=make_client_app(partial(given_config, run.config)),
            num_supernodes=len(run.data.clients),
            backend_config={
                "init_args": {"logging_level": "ERROR", "log_to_driver": False},
                "client_resources": {"num_cpus": runtime.client_cpus, "num_gpus": gpus},
            },
        )


def join_cluster(run: Run) -> None:
    """Connect to the run's Ray cluster; without an answer give the folder up, with `UserError`.

    Its machines need this project, at the same place or installed, and the data at the same path.
    """
    import ray

    address = str(run.config.runtime.ray.address)
    host, _, port = address.rpartition(":")
    try:
        # Ray itself would try for minutes.
        socket.create_connection((host, int(port)), timeout=10).close()
        # Flower then uses this connection.
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (OSError, RuntimeError, ValueError) as error:
        run.give_up()
        said = " ".join(str(error).split())
        raise UserError(
            f"runtime.ray.address={address}: no Ray cluster answers there ({said}); expected "
            "HOST:PORT of one that was started with 'ray start --head --port PORT'"
        ) from error
