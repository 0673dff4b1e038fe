"""Which runs are replicates, which are methods, and which methods are compared."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_runs import result

from common.errors import UserError
from server.report.groups import ABSENT, ComparisonGroup, differing, group_results
from server.report.results import Result


def labels(group: ComparisonGroup) -> dict[str, list[int]]:
    return {method.label: [r.seed for r in method.results] for method in group.methods}


def test_seed_place_runtime_and_tracking_make_replicates() -> None:
    names = ("run_dir", "runtime.client_cpus", "tracking.name")
    runs = [
        result("fedavg", seed, settings=dict.fromkeys(names, f"r/{seed}")) for seed in (3, 1, 2)
    ]
    (group,) = group_results(runs)
    assert labels(group) == {"fedavg": [1, 2, 3]}
    assert (group.title_settings, group.other_settings) == ({}, {})


def test_methods_of_one_name_are_told_apart_by_what_differs() -> None:
    def run(name: str, samples: str, lr: str) -> Result:
        settings = {"strategy.sampler.num_samples": samples, "client.lr": lr, "fusion.name": "auto"}
        return result(name, settings=settings)

    runs = [run("hier", "16", "1"), run("hier", "8", "1"), run("fedavg", "1", "1")]
    (group,) = group_results(runs)
    assert list(labels(group)) == [
        "fedavg",
        "hier, sampler.num_samples=8",
        "hier, sampler.num_samples=16",
    ]
    (group,) = group_results([*runs, run("hier", "8", "2")])
    assert "hier, sampler.num_samples=8, client.lr=2" in labels(group)
    assert "fedavg" in labels(group)


def test_all_other_settings_make_groups() -> None:
    runs = [
        result(name, settings={"clients.default": clients, "client.lr": lr})
        for name in ("fedavg", "hier")
        for clients in ("10", "3")
        for lr in ("0.1", "0.2")
    ]
    groups = group_results(runs)
    assert [group.title_settings for group in groups] == [
        {"clients.default": "3"},
        {"clients.default": "10"},
    ]
    for group in groups:
        assert list(labels(group)) == [
            "fedavg, client.lr=0.1",
            "fedavg, client.lr=0.2",
            "hier, client.lr=0.1",
            "hier, client.lr=0.2",
        ]


def test_a_title_is_no_longer_than_it_needs_to_be() -> None:
    sets = [
        {"rounds": "20", "dataset.name": "npz", "dataset.path": "a.npz"},
        {"rounds": "9", "dataset.name": "synthetic", "dataset.noise": "0.5"},
    ]
    npz, synthetic = group_results([result("fedavg", settings=settings) for settings in sets])
    assert npz.title_settings == {"dataset.name": "npz"}
    assert npz.other_settings == {"rounds": "20", "dataset.path": "a.npz", "dataset.noise": ABSENT}
    assert synthetic.other_settings == {
        "rounds": "9",
        "dataset.path": ABSENT,
        "dataset.noise": "0.5",
    }


def test_two_settings_where_one_does_not_suffice() -> None:
    runs = [
        result("fedavg", settings={"rounds": rounds, "partition.name": name})
        for rounds in ("1", "2")
        for name in ("iid", "size")
    ]
    assert len({tuple(group.title_settings.items()) for group in group_results(runs)}) == 4


RUNS = [
    result(name, seed, settings={"rounds": rounds, "client.lr": lr})
    for name in ("a", "b")
    for seed in (1, 2)
    for rounds in ("1", "2")
    for lr in ("1", "2")
]


@given(st.lists(st.sampled_from(range(len(RUNS))), min_size=1, unique=True), st.randoms())
def test_every_run_is_in_one_method_whatever_the_order(
    chosen: list[int], order: random.Random
) -> None:
    runs = [RUNS[number] for number in chosen]
    groups = group_results(runs)
    placed = [run for group in groups for method in group.methods for run in method.results]
    assert sorted(run.folder for run in placed) == sorted(run.folder for run in runs)
    for group in groups:
        for method in group.methods:
            assert set(differing(method.results)) <= {"seed"}
    shuffled = list(runs)
    order.shuffle(shuffled)
    assert [labels(group) for group in group_results(shuffled)] == list(map(labels, groups))


def test_the_same_run_twice() -> None:
    runs = [
        result("fedavg", 1, settings={"run_dir": name, "runtime.name": name}) for name in ("a", "b")
    ]
    with pytest.raises(UserError) as raised:
        group_results(runs)
    assert str(raised.value) == (
        f"{runs[0].folder} and {runs[1].folder} are the same run, seed 1: settings are equal; "
        "leave one out"
    )


# Comparison within a group ----------------------------------------------------------------------


def test_the_baseline_is_the_nearest_of_its_name() -> None:
    def run(name: str, lr: str, fusion: str) -> Result:
        return result(name, settings={"client.lr": lr, "fusion.name": fusion})

    both = [(lr, fusion) for lr in ("1", "2") for fusion in ("mean", "auto")]
    (group,) = group_results([run(name, *each) for name in ("fedavg", "hier") for each in both])
    for method in group.methods:
        nearest = group.baseline_of(method, "fedavg")
        assert nearest is not None and nearest.name == "fedavg"
        for name in ("client.lr", "fusion.name"):
            assert nearest.settings[name] == method.settings[name]
    assert group.baseline_of(group.methods[0], "nope") is None
    assert group.baseline_of(group.methods[0], None) is None


def test_the_direction_of_a_metric_is_heeded() -> None:
    def run(name: str, seed: int, mae: float) -> Result:
        return result(name, seed, test={"multimodal": {"corr": 1.0, "mae": mae}})

    runs = [run("fedavg", seed, 1 + seed / 10) for seed in (1, 2, 3)]
    runs += [run("hier", seed, 0.5 + seed / 11) for seed in (1, 2, 3)]
    (group,) = group_results(runs)
    fedavg, hier = group.methods
    found = group.difference(hier, "fedavg", "mae", lambda method: method.together("mae"))
    assert found is not None and found.verdict == "better" and found.mean < 0
    assert group.difference(fedavg, "fedavg", "mae", lambda each: each.together("mae")) is None


def test_the_best_modality_alone() -> None:
    nan = float("nan")
    test = {
        "multimodal": {"corr": 0.9, "mae": 0.1},
        "audio": {"corr": 0.5, "mae": 0.9},
        "vision": {"corr": 0.4, "mae": 0.8},
        "smell": {"corr": nan, "mae": nan},
    }
    (group,) = group_results([result("fedavg", test=test)])
    (method,) = group.methods
    assert method.best_alone("corr") == ("audio", 0.5)
    assert method.best_alone("mae") == ("vision", 0.8)
    assert method.best_alone("nope") is None
