"""What a simulation refuses before Ray is started."""

from pathlib import Path

import pytest

from common.config import compose_config
from common.errors import UserError
from server.app import prepare
from server.runtimes.simulation import join_cluster


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", "127.0.0.1:ray"])
def test_a_cluster_that_is_not_there_is_named_and_the_folder_given_up(
    tmp_path: Path, address: str
) -> None:
    overrides = ["runtime=simulation", f"runtime.ray.address={address}", "dataset.num_items=200"]
    run = prepare(compose_config("config", overrides), tmp_path / "run")
    with pytest.raises(UserError) as raised:
        join_cluster(run)
    assert str(raised.value).startswith(f"runtime.ray.address={address}: no Ray cluster answers")
    assert not (tmp_path / "run" / "rounds.jsonl").exists()
