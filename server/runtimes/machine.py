"""What a run that trains its clients on this machine needs from it."""

import logging
import os
from pathlib import Path

import torch

from common.config import RuntimeConfig
from common.errors import UserError
from common.training import choose_device
from server.run.folder import FLOWER_LOG
from server.run.run import Run


def prepare_machine(run: Run) -> None:
    """Send Flower's log to the run's folder.

    Raises `UserError`, and gives the folder up, for resources that this machine does not have.
    """
    runtime, there = run.config.runtime, {"cpus": os.cpu_count() or 1}
    there["gpus"] = torch.cuda.device_count()
    try:
        if runtime.ray.address is None:
            for name, needed in {"cpus": runtime.client_cpus, "gpus": runtime.client_gpus}.items():
                if (needed or 0) > there[name]:
                    raise UserError(
                        f"runtime.client_{name}={needed}: this machine has {there[name]}"
                    )
            choose_device(run.config.client.device)
    except UserError:
        run.give_up()
        raise
    log_to_file(run.folder.path / FLOWER_LOG)


def clients_at_once(runtime: RuntimeConfig) -> int:
    """Return how many clients this machine trains at a time."""
    at_once = max((os.cpu_count() or 1) // runtime.client_cpus, 1)
    if runtime.client_gpus:
        at_once = min(at_once, max(int(torch.cuda.device_count() / runtime.client_gpus), 1))
    return at_once


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
