"""Which runs may be compared: comparison groups of methods, and methods of seeds.

Runs that differ in nothing but the seed are one method. Methods are compared inside a group, where
every setting that does not belong to the method is equal.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Literal

from common.errors import UserError
from common.metrics import HEADLINE
from common.task import Task
from server.report.comparison import Difference, Spread, less_is_better, paired_difference, spread
from server.report.records import TOGETHER, Result

#: Settings that do not change what is learnt: a name, or a group with its dot.
_REPLICATE = ("seed", "run_dir", "runtime.", "tracking.")

#: Settings that make the method; all others make the comparison group.
_METHOD = ("strategy.", "fusion.", "client.", "patience", "checkpoint.deliver")

ABSENT = "(absent)"  #: the value of a setting that a run's version, or its dataset, did not have

#: Metrics that are shown beside the headline metric.
_BESIDE = {
    Task.regression: ("mae", "acc2"),
    Task.classification: ("log_loss",),
    Task.multilabel: ("weighted_accuracy",),
}

_SEEDS, _UNFINISHED = 12, 3  #: the most seeds, and the most unfinished runs, that are named

Settings = Mapping[str, str]

#: Which scores of a summary: of all items, under each fusion rule, or of each subset of modalities.
Kind = Literal["test", "test_by_fusion", "test_by_subset"]


@dataclass(frozen=True)
class Method:
    """Runs that differ in nothing but the seed, by seed."""

    name: str  #: ``strategy.name``
    settings: Settings  #: those of the method that differ among the reported runs
    label: str  #: ``hierarchical, sampler.num_samples=8``: what distinguishes it in its group
    results: tuple[Result, ...]

    def scores(self, metric: str, title: str = TOGETHER, kind: Kind = "test") -> dict[int, float]:
        """Seed to a metric of one kind of prediction, for the runs that have it."""
        picked = {run.seed: getattr(run.summary, kind).get(title, {}) for run in self.results}
        return {seed: scores[metric] for seed, scores in picked.items() if metric in scores}

    def spread(self, metric: str, title: str = TOGETHER, kind: Kind = "test") -> Spread:
        """Describe these scores."""
        return spread(self.scores(metric, title, kind).values())

    def best_alone(self, metric: str) -> tuple[str, float] | None:
        """Return the modality that is best alone, and its mean; None where none has a number."""
        names = dict.fromkeys(name for run in self.results for name in run.summary.test)
        means = {name: self.spread(metric, name).mean for name in names if name != TOGETHER}
        known = (pair for pair in means.items() if not math.isnan(pair[1]))
        best = min if less_is_better(metric) else max
        return best(known, key=itemgetter(1), default=None)


@dataclass(frozen=True)
class ComparisonGroup:
    """Methods, by name and settings, that were tried on the same data under the same conditions."""

    number: int  #: from 1
    title: str  #: ``1. dataset.name=npz, rounds=20``: the settings that suffice to distinguish it
    others: Sequence[str]  #: the rest of the settings that differ among groups, as ``name=value``
    metrics: Sequence[str]  #: that are shown; the first is the one compared
    methods: tuple[Method, ...]
    #: ``strategy.name`` or label of what the others are compared with, if anything.
    baseline: str | None

    @property
    def metric(self) -> str:
        """The metric that is compared."""
        return self.metrics[0]

    @property
    def baselines(self) -> list[Method]:
        """The method with the label, or all that have it as their ``strategy.name``."""
        label = shorten_paths(self.baseline or "")
        labelled = [method for method in self.methods if method.label == label]
        return labelled or [method for method in self.methods if method.name == self.baseline]

    def baseline_of(self, method: Method) -> Method | None:
        """Return the baseline nearest in its settings, the first of equals; None for a baseline."""
        baselines = self.baselines

        def distance(baseline: Method) -> int:
            return sum(baseline.settings[key] != method.settings[key] for key in method.settings)

        return None if method in baselines else min(baselines, key=distance, default=None)

    def difference(
        self, method: Method, title: str = TOGETHER, kind: Kind = "test"
    ) -> Difference | None:
        """Compare a method with its baseline; None for the baseline itself, or without one."""
        if (other := self.baseline_of(method)) is None:
            return None
        scores, others = (one.scores(self.metric, title, kind) for one in (method, other))
        return paired_difference(scores, others, less=less_is_better(self.metric))


@dataclass(frozen=True)
class Report:
    """The runs that are reported, compared."""

    command: str  #: the command line that asked for it
    results: Sequence[Result]
    unfinished: Sequence[str]  #: folders of runs that have not ended
    groups: Sequence[ComparisonGroup]
    baseline: str | None  #: as in `ComparisonGroup`
    repeated: Sequence[str] = ()  #: folders of runs that others repeat

    @property
    def methods(self) -> list[tuple[str, Method]]:
        """Label and method; with the number of its group if there are several."""
        several = len(self.groups) > 1
        return [
            (f"{group.number}. {method.label}" if several else method.label, method)
            for group in self.groups
            for method in group.methods
        ]

    @property
    def counts(self) -> str:
        """``4 runs, 2 methods, 2 seeds (1, 2), 1 comparison group``."""
        seeds = sorted({result.seed for result in self.results})
        runs, methods = count(len(self.results), "run"), count(len(self.methods), "method")
        named, groups = _first(seeds, _SEEDS), count(len(self.groups), "comparison group")
        return f"{runs}, {methods}, {count(len(seeds), 'seed')} ({named}), {groups}"

    @property
    def compares(self) -> bool:
        """Whether any group has the baseline."""
        return any(group.baselines for group in self.groups)

    def warnings(self) -> Iterator[str]:
        """Yield what a reader should know before the numbers."""
        if self.unfinished:
            runs = count(len(self.unfinished), "unfinished run")
            yield f"{runs} left out: {shorten_paths(_first(self.unfinished, _UNFINISHED))}"
        if self.repeated:
            runs = count(len(self.repeated), "repeated run")
            yield (
                f"{runs} left out: {shorten_paths(_first(self.repeated, _UNFINISHED))}; of runs "
                "that are equal in settings and seed, the last folder is reported"
            )
        without = [(group.title, [group]) for group in self.groups if not group.baselines]
        if not self.compares:
            without = [("runs", list(self.groups))]
        compared = self.baseline is not None and len(self.methods) > 1
        for where, groups in without if compared else []:
            names = ", ".join(sorted({method.name for group in groups for method in group.methods}))
            yield f"{where}: no baseline {self.baseline}, so no differences; there are {names}"


def _first(values: Sequence[object], most: int) -> str:
    return ", ".join([*map(str, values[:most]), *(["…"] if len(values) > most else [])])


def count(number: int, what: str) -> str:
    """``1 run``, ``2 runs``."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def shorten_paths(text: str) -> str:
    """Return a text without absolute paths, which would reveal names of the machine.

    They become relative to the working directory, or ``…/folder/name`` if they lie outside it.
    """

    def shorten(match: re.Match[str]) -> str:
        path = Path(match[0])
        if path.is_relative_to(Path.cwd()):
            return str(path.relative_to(Path.cwd()))
        return "/".join(["…", *path.parts[1:][-2:]])

    return re.sub(r"(?<![^\s=,\[\"'(])/[^,\]\"')=]*[^,\]\"')=\s]", shorten, text)


def without_repeats(results: Sequence[Result]) -> tuple[list[Result], list[str]]:
    """Return the last of the runs that are equal in settings and seed, and the others' folders."""
    names = [name for name in differing(results) if not is_in(name, _REPLICATE)]
    last = [same[-1] for same in _partition(results, [*names, "seed"])]
    kept = [result for result in results if result in last]
    return kept, [result.folder for result in results if result not in last]


def make_groups(
    results: Sequence[Result], baseline: str | None = None, metrics: Sequence[str] = ()
) -> list[ComparisonGroup]:
    """Sort results into comparison groups, which show some metrics, or those of their task.

    Of each there is one, see `without_repeats`. Raises `UserError` if no run has a metric.
    """
    known = _metric_names(results)
    for metric in metrics:
        if metric not in known:
            raise UserError(f"metrics: there is no metric {metric!r}; there are {', '.join(known)}")
    names = [name for name in differing(results) if not is_in(name, _REPLICATE)]
    inner = [name for name in names if is_in(name, _METHOD)]
    outer = [name for name in names if name not in inner]
    parts = _partition(results, outer)
    title = _distinguishing(outer, [members[0] for members in parts])
    others = [name for name in outer if name not in title]
    parts.sort(key=lambda members: [natural(v) for v in _values(members[0], title).values()])
    groups = []
    for number, members in enumerate(parts, 1):
        words, more = (assignments(_values(members[0], names)) for names in (title, others))
        words = [word for word in words if ABSENT not in word] or words or ["All runs"]
        heading, more = f"{number}. {', '.join(words)}", [w for w in more if ABSENT not in w]
        known, headline = _metric_names(members), HEADLINE[members[0].task]
        wanted = metrics or (headline, *_BESIDE[members[0].task])
        shown = [metric for metric in wanted if metric in known] or [headline]
        methods = _methods(members, inner)
        groups.append(ComparisonGroup(number, heading, more, shown, methods, baseline))
    return groups


def _metric_names(results: Iterable[Result]) -> list[str]:
    return list(dict.fromkeys(name for run in results for name in run.summary.test[TOGETHER]))


def _methods(results: Sequence[Result], names: Sequence[str]) -> tuple[Method, ...]:
    methods = []
    for namesakes in _partition(results, ["strategy.name"]):
        name, here = namesakes[0].settings["strategy.name"], differing(namesakes)
        differs = [key for key in names if key in here]
        for members in _partition(namesakes, names):
            label = ", ".join([shorten_paths(name), *assignments(_values(members[0], differs))])
            members.sort(key=attrgetter("seed"))
            methods.append(Method(name, _values(members[0], names), label, tuple(members)))
    return tuple(sorted(methods, key=lambda method: natural(method.label)))


def differing(results: Sequence[Result]) -> list[str]:
    """Names of the settings that are not the same in all results, in their order."""
    names = dict.fromkeys(name for result in results for name in result.settings)
    return [name for name in names if len(_partition(results, [name])) > 1]


def assignments(settings: Settings) -> list[str]:
    """``name=value`` of each setting; the strategy's own without their group."""
    return [shorten_paths(f"{n.removeprefix('strategy.')}={v}") for n, v in settings.items()]


def is_in(name: str, names: Sequence[str]) -> bool:
    """Whether a setting is among some, which may be groups with their dot."""
    return name in names or name.startswith(tuple(group for group in names if group[-1] == "."))


def _values(result: Result, names: Iterable[str]) -> dict[str, str]:
    return {name: result.settings.get(name, ABSENT) for name in names}


def _partition(results: Iterable[Result], names: Sequence[str]) -> list[list[Result]]:
    """Return results with equal values of some settings together."""
    parts: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        parts.setdefault(tuple(_values(result, names).values()), []).append(result)
    return list(parts.values())


def _distinguishing(names: Iterable[str], results: Sequence[Result]) -> list[str]:
    """Return settings that suffice to distinguish results, names of things first."""
    chosen: list[str] = []
    for name in sorted(names, key=lambda name: not name.endswith(".name")):
        if len(_partition(results, [*chosen, name])) > len(_partition(results, chosen)):
            chosen.append(name)
    return chosen


def natural(text: str) -> list[tuple[float, str]]:
    """Sort ``8`` before ``16``."""
    parts = re.split(r"(\d+(?:\.\d+)?)", text)
    return [(float(part), "") if index % 2 else (0.0, part) for index, part in enumerate(parts)]
