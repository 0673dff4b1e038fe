"""Which runs are replicates, which are methods, and which methods are compared."""

import random
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_runs import result

from common.errors import UserError
from common.task import Task
from server.report.groups import ComparisonGroup, Report, differing, make_groups, shorten_paths
from server.report.records import Result


def labels(group: ComparisonGroup) -> dict[str, list[int]]:
    return {method.label: [r.seed for r in method.results] for method in group.methods}


def test_seed_place_runtime_and_tracking_make_replicates() -> None:
    names = ("run_dir", "runtime.client_cpus", "tracking.name")
    runs = [
        result("fedavg", seed, settings=dict.fromkeys(names, f"r/{seed}")) for seed in (3, 1, 2)
    ]
    (group,) = make_groups(runs)
    assert labels(group) == {"fedavg": [1, 2, 3]}
    assert (group.title, group.others) == ("1. All runs", [])


def test_methods_of_one_name_are_told_apart_by_what_differs() -> None:
    def run(name: str, samples: str, lr: str) -> Result:
        settings = {"strategy.sampler.num_samples": samples, "client.lr": lr, "fusion.name": "auto"}
        return result(name, settings=settings)

    runs = [run("hier", "16", "1"), run("hier", "8", "1"), run("fedavg", "1", "1")]
    (group,) = make_groups(runs)
    assert list(labels(group)) == [
        "fedavg",
        "hier, sampler.num_samples=8",
        "hier, sampler.num_samples=16",
    ]
    (group,) = make_groups([*runs, run("hier", "8", "2")])
    assert "hier, sampler.num_samples=8, client.lr=2" in labels(group)
    assert "fedavg" in labels(group)


def test_all_other_settings_make_groups() -> None:
    runs = [
        result(name, settings={"clients.default": clients, "client.lr": lr})
        for name in ("fedavg", "hier")
        for clients in ("10", "3")
        for lr in ("0.1", "0.2")
    ]
    groups = make_groups(runs)
    titles = [group.title for group in groups]
    assert titles == ["1. clients.default=3", "2. clients.default=10"]
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
    npz, synthetic = make_groups([result("fedavg", settings=settings) for settings in sets])
    assert npz.title == "1. dataset.name=npz"
    assert npz.others == ["rounds=20", "dataset.path=a.npz"]
    assert synthetic.others == ["rounds=9", "dataset.noise=0.5"]


RUNS = [
    result(name, seed, settings={"rounds": rounds, "partition.name": clients, "client.lr": lr})
    for name, seed in product(("a", "b"), (1, 2))
    for rounds, clients, lr in product(("1", "2"), ("iid", "size"), ("1", "2"))
]


@given(st.lists(st.sampled_from(range(len(RUNS))), min_size=1, unique=True), st.randoms())
def test_every_run_is_in_one_method_whatever_the_order(
    chosen: list[int], order: random.Random
) -> None:
    runs = [RUNS[number] for number in chosen]
    groups = make_groups(runs)
    assert len({group.title.partition(". ")[2] for group in groups}) == len(groups)
    placed = [run for group in groups for method in group.methods for run in method.results]
    assert sorted(run.folder for run in placed) == sorted(run.folder for run in runs)
    for group in groups:
        for method in group.methods:
            assert set(differing(method.results)) <= {"seed"}
    shuffled = list(runs)
    order.shuffle(shuffled)
    assert [labels(group) for group in make_groups(shuffled)] == list(map(labels, groups))


def test_the_same_run_twice() -> None:
    runs = [
        result("fedavg", 1, settings={"run_dir": name, "runtime.name": name}) for name in ("a", "b")
    ]
    with pytest.raises(UserError) as raised:
        make_groups(runs)
    assert str(raised.value) == (
        f"{runs[0].folder} and {runs[1].folder} are the same run, seed 1: settings are equal; "
        "leave one out"
    )


# Comparison within a group ----------------------------------------------------------------------


def test_the_baseline_is_the_nearest_of_its_name() -> None:
    both = [(lr, fusion) for lr in ("1", "2") for fusion in ("mean", "auto")]
    runs = [
        result(name, settings={"client.lr": lr, "fusion.name": fusion})
        for name in ("fedavg", "hier")
        for lr, fusion in both
    ]
    (group,) = make_groups(runs, "fedavg")
    for method in group.methods:
        nearest = group.baseline_of(method)
        assert (nearest is None) == (method.name == "fedavg")
        assert nearest is None or (nearest.name, nearest.settings["client.lr"]) == (
            "fedavg",
            method.settings["client.lr"],
        )
        assert nearest is None or nearest.settings["fusion.name"] == method.settings["fusion.name"]
    for name in ("nope", None):
        assert make_groups(runs, name)[0].baselines == []
    (one,) = make_groups(runs, "fedavg, client.lr=1, fusion.name=mean")[0].baselines
    assert one.label == "fedavg, client.lr=1, fusion.name=mean"


def test_the_direction_of_a_metric_is_heeded() -> None:
    def run(name: str, seed: int, mae: float) -> Result:
        return result(name, seed, test={"multimodal": {"corr": 1.0, "mae": mae}})

    runs = [run("fedavg", seed, 1 + seed / 10) for seed in (1, 2, 3)]
    runs += [run("hier", seed, 0.5 + seed / 11) for seed in (1, 2, 3)]
    (group,) = make_groups(runs, "fedavg", ["mae"])
    fedavg, hier = group.methods
    difference = group.difference(hier)
    assert difference is not None and difference.verdict == "better" and difference.mean < 0
    assert group.difference(fedavg) is None


def test_the_best_modality_alone() -> None:
    test = {
        "multimodal": {"corr": 0.9, "mae": 0.1},
        "audio": {"corr": 0.5, "mae": 0.9},
        "vision": {"corr": 0.4, "mae": 0.8},
        "smell": {"corr": float("nan"), "mae": float("nan")},
    }
    ((method,),) = (group.methods for group in make_groups([result("fedavg", test=test)]))
    assert method.best_alone("corr") == ("audio", 0.5)
    assert method.best_alone("mae") == ("vision", 0.8)
    assert method.best_alone("nope") is None


# Metrics, warnings and places -------------------------------------------------------------------


def test_groups_of_other_tasks_have_their_own_metrics() -> None:
    tests: dict[Task, dict[str, float]] = {
        Task.regression: {"mse": 1.0, "mae": 1.0, "corr": 0.5, "acc2": 0.5},
        Task.classification: {"f1": 0.5, "accuracy": 0.5, "log_loss": 1.0},
        Task.multilabel: {"weighted_accuracy": 0.5, "f1": 0.5, "f1_0": 0.5},
    }
    runs = [result("a", task=task, test={"multimodal": test}) for task, test in tests.items()]
    assert {tuple(group.metrics) for group in make_groups(runs)} == {
        ("corr", "mae", "acc2"),
        ("accuracy", "log_loss"),
        ("f1", "weighted_accuracy"),
    }
    # Of the chosen ones each group keeps those that it has; the headline where it has none.
    chosen = make_groups(runs, metrics=["log_loss", "mae"])
    assert {tuple(group.metrics) for group in chosen} == {("mae",), ("log_loss",), ("f1",)}
    with pytest.raises(UserError, match=r"^metrics: there is no metric 'cor'; there are mse, mae,"):
        make_groups(runs, metrics=["corr", "cor"])


@pytest.mark.parametrize(
    ("baseline", "warnings"),
    [
        (None, []),
        ("hierr", ["runs: no baseline hierr, so no differences; there are fedavg, hier"]),
        ("fedavg", ["2. rounds=9: no baseline fedavg, so no differences; there are hier"]),
    ],
)
def test_groups_without_the_baseline_are_named(baseline: str | None, warnings: list[str]) -> None:
    runs = [result(name, settings={"rounds": n}) for name, n in (("fedavg", "3"), ("hier", "9"))]
    report = Report("", runs, ["r/0"] * 9, make_groups(runs, baseline), baseline)
    unfinished = "9 unfinished runs left out: r/0, r/0, r/0, …"
    assert list(report.warnings()) == [unfinished, *warnings]
    assert report.compares == (baseline == "fedavg")
    assert report.counts == "2 runs, 2 methods, 1 seed (1), 2 comparison groups"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("dataset.path=/data/site/mosi/train.npz", "dataset.path=…/mosi/train.npz"),
        ("runs=[/data/site/a,{cwd}/b/c]", "runs=[…/site/a,b/c]"),
        ('runs="/home/me/my runs/a"', 'runs="…/my runs/a"'),
        ("path=/top, rounds=3", "path=…/top, rounds=3"),
        ("runs=runs/*/seed-[12]", "runs=runs/*/seed-[12]"),
        ("{cwd}/x", "x"),
    ],
)
def test_places_of_the_machine_stay_private(text: str, shown: str) -> None:
    assert shorten_paths(text.replace("{cwd}", str(Path.cwd()))) == shown
