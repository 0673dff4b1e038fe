"""How tests are dealt out to workers: file by file, and all federations of processes to one.

Files share what takes long to make. Two federations at once starve each other on two cores;
pytest-xdist's own groups do not hold with pytest 9.
"""

import gc

import hypothesis
import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling
from xdist.scheduler.protocol import Scheduling

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

#: Files that start federations of several processes.
FEDERATIONS = tuple(
    f"tests/e2e/test_{name}.py"
    for name in ("deadline", "deployment", "faults", "documents", "recordings", "security", "train")
)


#: Files and folders that `make test` leaves to `make test-all`: they take most of the time.
SLOW = (
    "tests/e2e/",
    "tests/common/data/formats/test_fuzz.py",
    "tests/common/data/formats/test_round_trips.py",
    "tests/common/data/test_shards.py",
    "tests/server/commands/test_bad_paths.py",
    "tests/server/commands/test_credentials.py",
    "tests/server/commands/test_odd_paths.py",
    "tests/server/commands/test_predict.py",
    "tests/server/commands/test_prepare.py",
    "tests/server/commands/test_report.py",
    "tests/server/commands/test_serve.py",
    "tests/server/export/",
    "tests/server/preparation/",
    "tests/server/baselines/",
    "tests/server/run/test_resume",
    "tests/server/runtimes/",
    "tests/server/tracking/test_tools.py",
)

#: The federation on real processes that `make test` runs: the README's.
FIRST_DEPLOYMENT = "tests/e2e/test_documents.py::test_the_first_real_deployment"


class OneWorkerForProcesses(LoadScopeScheduling):
    """Every file is a scope of its own, but for federations, which are one."""

    def _split_scope(self, nodeid: str) -> str:
        return "federations" if nodeid.startswith(FEDERATIONS) else nodeid.partition("::")[0]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is slow, and begin with the federations: they keep one worker busy throughout."""
    for item in items:
        if item.nodeid.startswith(SLOW) and item.nodeid != FIRST_DEPLOYMENT:
            item.add_marker(pytest.mark.slow)
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
