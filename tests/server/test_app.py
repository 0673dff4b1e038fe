"""What `flwr run` refuses before anything starts."""

from contextlib import nullcontext

import pytest

from common.config import Config, compose
from common.errors import UserError
from server.app import check_federated


@pytest.mark.parametrize("name", ["fedavg", "hierarchical", "local", "pooled", "cross_modal"])
def test_a_baseline_is_no_federation(name: str) -> None:
    federated = name in ("fedavg", "hierarchical")
    refused = pytest.raises(UserError, match=f"strategy={name} is a baseline .* utmp-train")
    with nullcontext() if federated else refused:
        check_federated(compose(Config, [f"strategy={name}"]))
