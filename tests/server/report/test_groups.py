"""Which runs are replicates, which are methods, and which methods are compared."""

import random
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_runs import result

from common.task import Task
from server.report.groups import (
    ComparisonGroup,
    Report,
    differing,
    make_groups,
    shorten_paths,
    without_repeats,
)


def labels(group: ComparisonGroup) -> dict[str, list[int]]:
    return {method.label: [r.seed for r in method.results] for method in group.methods}


def test_seed_place_runtime_and_tracking_make_replicates() -> None:
    names = ("run_dir", "runtime.client_cpus", "tracking.name")
    runs = [result("fedavg", n, settings=dict.fromkeys(names, f"r/{n}")) for n in (3, 1, 2)]
    (group,) = make_groups(runs)
    assert labels(group) == {"fedavg": [1, 2, 3]}
    assert (group.title, group.others) == ("1. All runs", [])
    twin = result("fedavg", 1, settings=dict.fromkeys(names, "elsewhere"))
    assert without_repeats([*runs, twin]) == ([runs[0], runs[2], twin], [runs[1].folder])
    assert without_repeats(runs) == (runs, [])


def test_what_belongs_to_the_method_is_in_its_label_and_the_rest_makes_groups() -> None:
    settings = [
        {"clients.default": clients, "client.lr": lr, "strategy.sampler.num_samples": samples}
        for clients in ("10", "3")
        for lr, samples in (("1", "16"), ("1", "8"), ("2", "8"))
    ]
    runs = [result("hier", settings=given) for given in settings]
    runs.append(result("fedavg", settings=settings[0]))
    ten, three = reversed(make_groups(runs))
    assert (three.title, ten.title) == ("1. clients.default=3", "2. clients.default=10")
    methods = [
        "hier, client.lr=1, sampler.num_samples=8",
        "hier, client.lr=1, sampler.num_samples=16",
        "hier, client.lr=2, sampler.num_samples=8",
    ]
    assert (list(labels(three)), list(labels(ten))) == (methods, ["fedavg", *methods])


def test_which_round_a_run_delivers_belongs_to_its_method() -> None:
    names = ("checkpoint.deliver", "patience")
    pairs = (("best", "3"), ("best", "null"), ("last", "null"))
    runs = [result("hier", settings=dict(zip(names, pair, strict=True))) for pair in pairs]
    (group,) = make_groups(runs)
    assert len(group.methods) == 3


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


# Comparison within a group ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("baseline", "labels"),
    [
        ("fedavg", ["fedavg, client.lr=1", "fedavg, client.lr=2"]),
        ("fedavg, client.lr=2", ["fedavg, client.lr=2"]),
        ("nope", []),
        (None, []),
    ],
)
def test_a_baseline_is_a_name_or_a_label(baseline: str | None, labels: list[str]) -> None:
    pairs = product(("fedavg", "hier"), ("1", "2"))
    runs = [result(name, settings={"client.lr": lr}) for name, lr in pairs]
    (group,) = make_groups(runs, baseline)
    assert [method.label for method in group.baselines] == labels
    assert all(group.difference(method) is None for method in group.baselines)


def test_the_best_modality_alone() -> None:
    scores = {"multimodal": (0.9, 0.1), "audio": (0.5, 0.9), "vision": (0.4, 0.8)}
    scores["smell"] = (float("nan"),) * 2
    test = {name: {"corr": corr, "mae": mae} for name, (corr, mae) in scores.items()}
    (method,) = make_groups([result("fedavg", test=test)])[0].methods
    assert method.best_alone("corr") == ("audio", 0.5)
    assert method.best_alone("mae") == ("vision", 0.8)
    assert method.best_alone("nope") is None


# Metrics, warnings and places -------------------------------------------------------------------


def test_groups_of_other_tasks_have_their_own_metrics() -> None:
    tests = {
        Task.regression: "mse mae corr acc2",
        Task.classification: "f1 accuracy log_loss",
        Task.multilabel: "weighted_accuracy f1 f1_0",
    }
    runs = [
        result("a", task=task, test={"multimodal": dict.fromkeys(names.split(), 0.5)})
        for task, names in tests.items()
    ]
    assert {tuple(group.metrics) for group in make_groups(runs)} == {
        ("corr", "mae", "acc2"),
        ("accuracy", "log_loss"),
        ("f1", "weighted_accuracy"),
    }
    # Runs of a group need not have the same metrics.
    old = result("a", 2, test={"multimodal": {"mae": 0.5, "corr": 0.5, "acc2": 1.0}})
    new = result("a", 1, test={"multimodal": {"mae": 0.5, "rmse": 0.5, "corr": 0.5}})
    (group,) = make_groups([new, old])
    assert group.metrics == ["corr", "mae", "acc2"]
    assert group.methods[0].scores("acc2") == {2: 1.0}
    # Of the chosen ones each group keeps those that it has; the headline where it has none.
    chosen = make_groups(runs, metrics=["log_loss", "mae"])
    assert {tuple(group.metrics) for group in chosen} == {("mae",), ("log_loss",), ("f1",)}


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
