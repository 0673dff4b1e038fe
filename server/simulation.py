"""All clients on this machine: Flower's simulation runtime on Ray."""

import logging
import os
import socket
import warnings
from functools import partial
from pathlib import Path

import torch
from flwr.simulation import run_simulation

from client.app import given_config, make_client_app
from client.trainer import choose_device
from common.config import Config, RuntimeConfig
from common.errors import UserError
from server.app import make_server_app
from server.run.federation import Run
from server.run.folder import FLOWER_LOG


def simulate(run: Run) -> None:
    """Execute a prepared run with one simulated SuperNode for each client.

    Raises
    ------
    UserError
        As `server.run.federation.Run.execute`.
    """
    prepare_machine(run)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if run.config.runtime.ray.address is not None:
            join_cluster(run)
        run_simulation(
            server_app=make_server_app(run),
            client_app=make_client_app(partial(given_config, run.config)),
            num_supernodes=len(run.data.clients),
            backend_config={
                "init_args": {"logging_level": "ERROR", "log_to_driver": False},
                "client_resources": {**client_resources(run.config.runtime)},
            },
        )


def prepare_machine(run: Run) -> None:
    """Check that a run can start here, and send Flower's log to its folder.

    Raises
    ------
    UserError
        As `check_resources`; the folder is given up then.
    """
    try:
        check_resources(run.config)
    except UserError:
        run.folder.release()
        raise
    log_to_file(run.folder.path / FLOWER_LOG)


def join_cluster(run: Run) -> None:
    """Connect to the Ray cluster that the clients are to run on.

    Its machines need this project, at the same place or installed, and the data at the same path.

    Raises
    ------
    UserError
        If none answers at its address; the folder is given up then.
    """
    import ray

    address = str(run.config.runtime.ray.address)
    host, _, port = address.rpartition(":")
    try:
        # Ray itself would try for minutes.
        with socket.create_connection((host, int(port)), timeout=10):
            pass
        # Flower uses the connection that there is.
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (OSError, RuntimeError, ValueError) as error:
        run.folder.release()
        raise UserError(
            f"runtime.ray.address={address}: no Ray cluster answers there ({error}); expected "
            "HOST:PORT of one that was started with 'ray start --head --port PORT'"
        ) from error


def check_resources(config: Config) -> None:
    """Raise `UserError` for a device or resources that this machine does not have."""
    runtime = config.runtime
    if runtime.ray.address is not None:
        return
    cpus, gpus = os.cpu_count() or 1, torch.cuda.device_count()
    if runtime.client_cpus > cpus:
        raise UserError(f"runtime.client_cpus={runtime.client_cpus}: this machine has {cpus}")
    if (runtime.client_gpus or 0) > gpus:
        raise UserError(f"runtime.client_gpus={runtime.client_gpus}: this machine has {gpus}")
    choose_device(config.client.device)


def client_resources(runtime: RuntimeConfig) -> dict[str, int | float]:
    """Return what Ray reserves for a client; GPUs are shared by the clients that run at once."""
    gpus = runtime.client_gpus
    if gpus is None and runtime.ray.address is not None:
        gpus = 0.0  # what the cluster has is not known here
    elif gpus is None:
        at_once = max((os.cpu_count() or 1) // runtime.client_cpus, 1)
        gpus = min(torch.cuda.device_count() / at_once, 1.0)
    return {"num_cpus": runtime.client_cpus, "num_gpus": gpus}


def log_to_file(path: Path) -> None:
    """Send what Flower and Ray log to a file instead of the terminal."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    for name in ("flwr", "ray"):
        logger = logging.getLogger(name)
        for former in list(logger.handlers):
            logger.removeHandler(former)
            former.close()
        logger.addHandler(handler)
        logger.propagate = False
