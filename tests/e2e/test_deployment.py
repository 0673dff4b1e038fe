"""Federations on real Flower processes; the plainest one is in the test of the documents."""

import subprocess

import pytest
from processes import training
from tiny_runs import untimed

pytestmark = pytest.mark.e2e


def test_sites_of_either_command_train_and_a_damaged_shard_is_refused_by_name(
    federation, command, tiny, tmp_path
) -> None:
    prepared = tmp_path / "prepared"
    command("utmp-prepare", "format=synthetic", "clients.default=1", f"out={prepared}")
    site = tmp_path / "site"
    site.mkdir()
    shard = site / "audio-0.safetensors"
    whole = (prepared / shard.name).read_bytes()
    shard.write_bytes(whole)
    federation.add_node(f'modality="audio" data="{shard}"')
    federation.add_node(f'modality="language" data="{prepared}/language-0.safetensors"')
    # A site may be a plain flower-supernode.
    federation.add_flower_node(f'modality="vision" data="{prepared}/vision-0.safetensors"')
    model = [each for each in tiny if not each.startswith(("dataset.", "clients."))]

    def run(name: str, *more: str) -> str:
        data = ["dataset=shards", f"dataset.path={prepared}"]
        return federation.train([*model, *data, f"run_dir={tmp_path}/{name}", *more])

    assert "round 2" in run("good")
    rounds, summary = untimed(tmp_path / "good")
    assert list(summary["test"]) == ["multimodal", "language", "audio", "vision"]
    expected = {"language": 1, "audio": 1, "vision": 1}
    assert [record["clients"] for record in rounds] == [expected, expected]

    # The site's process, which stays, notices that its file changed; more in tests/client.
    damaged = bytearray(whole)
    damaged[-1] ^= 1
    shard.write_bytes(damaged)
    printed = run("damaged", "runtime.node_timeout=20")
    lines = [line for line in printed.splitlines() if f"shard {shard} is damaged" in line]
    (told,) = (line for line in lines if line.startswith("left out: "))
    (failed,) = (line for line in lines if line.startswith("error: "))
    assert told.startswith("left out: node ")
    assert failed.startswith("error: no client of modality 'audio' after 20 s; start a node ")
    assert "round 1" not in printed
    assert not (tmp_path / "damaged" / "summary.json").exists()


def test_flwr_run_local_simulates_on_fewer_nodes_than_clients(
    command, environment, tiny, tmp_path
) -> None:
    overrides = [*tiny, "clients.default=2", f"run_dir={tmp_path}/run"]
    try:
        done = command(*training(overrides, "local"))
    finally:
        # `flwr run . local` leaves its SuperLink running; it is known by its folder.
        subprocess.run(["pkill", "--full", environment["FLWR_HOME"]], check=False)

    assert "2 simulated SuperNodes" in done.stdout
    rounds, _ = untimed(tmp_path / "run")
    assert rounds[0]["clients"] == {"language": 2, "audio": 2, "vision": 2}
