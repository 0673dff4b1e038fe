"""How tests are dealt out to workers: file by file, and all federations of processes to one.

Files share what takes long to make. Two federations at once starve each other on two cores;
pytest-xdist's own groups do not hold with pytest 9.
"""

import gc

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling
from xdist.scheduler.protocol import Scheduling

#: Files that start federations of several processes.
FEDERATIONS = tuple(
    f"tests/e2e/test_{name}.py"
    for name in ("deployment", "faults", "documents", "security", "train")
)


class OneWorkerForProcesses(LoadScopeScheduling):
    """Every file is a scope of its own, but for federations, which are one."""

    def _split_scope(self, nodeid: str) -> str:
        return "federations" if nodeid.startswith(FEDERATIONS) else nodeid.partition("::")[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the federations: they take a worker as long as all else takes the other."""
    items.sort(key=lambda item: not item.nodeid.startswith(FEDERATIONS))


def pytest_collection_finish() -> None:
    """Spare each collection of garbage the million objects that stay: half a second."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    """Deal out so, whatever ``--dist`` says, and in this order."""
    config.option.loadscopereorder = False
    return OneWorkerForProcesses(config, log)
