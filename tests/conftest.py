"""How tests are dealt out to workers: file by file, and those on real processes to one.

Files share what takes long to make. Two federations at once starve each other on two cores;
pytest-xdist's own groups do not hold with pytest 9.
"""

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling
from xdist.scheduler.protocol import Scheduling

E2E = "tests/e2e/"


class OneWorkerForProcesses(LoadScopeScheduling):
    """Every file is a scope of its own, but for those in ``tests/e2e``, which are one."""

    def _split_scope(self, nodeid: str) -> str:
        return E2E if nodeid.startswith(E2E) else nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    """Deal out so, whatever ``--dist`` says."""
    return OneWorkerForProcesses(config, log)
