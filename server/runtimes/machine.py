"""What a run that trains its clients on this machine needs from it."""

import logging
import os
from pathlib import Path

import torch

from common.config import Config, RuntimeConfig
from common.errors import UserError
from common.training import choose_device
from server.run.folder import FLOWER_LOG
from server.run.run import Run


def prepare_machine(run: Run) -> None:
    """Check that a run can start here, or give its folder up; send Flower's log to its folder."""
    try:
        check_resources(run.config)
    except UserError:
        run.give_up()
        raise
    log_to_file(run.folder.path / FLOWER_LOG)


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
