"""What `flwr run` refuses before anything starts."""

import pytest

from common.config import compose_config
from common.errors import UserError
from server.app import check_federated


@pytest.mark.parametrize("name", ["local", "pooled", "centralised", "early_fusion", "cross_modal"])
def test_a_baseline_is_no_federation(name: str) -> None:
    with pytest.raises(UserError, match=f"strategy={name} is a baseline .* utmp-train"):
        check_federated(compose_config("config", [f"strategy={name}"]))


@pytest.mark.parametrize("name", ["fedavg", "paper", "hierarchical"])
def test_a_federated_strategy_passes(name: str) -> None:
    check_federated(compose_config("config", [f"strategy={name}"]))
