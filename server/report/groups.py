"""Which runs may be compared: comparison groups of methods, and methods of seeds.

Runs that differ in nothing but the seed are one method. Methods are compared inside a group, where
every setting that does not belong to the method is equal.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from common.errors import UserError
from common.task import Task
from server.report.comparison import Difference, less_is_better, paired_difference, spread
from server.report.results import TOGETHER, Metrics, Result

#: Settings that do not change what is learnt: a name, or a group with its dot.
_REPLICATE = ("seed", "run_dir", "runtime.", "tracking.")

#: Settings that make the method; all others make the comparison group.
_METHOD = ("strategy.", "fusion.", "client.")

#: The value of a setting that a run's version, or its dataset, did not have.
ABSENT = "(absent)"

Settings = Mapping[str, str]


@dataclass(frozen=True)
class Method:
    """Runs that differ in nothing but the seed.

    Attributes
    ----------
    name
        ``strategy.name``.
    settings
        Those of the method that differ among the reported runs.
    differs
        Of these, the ones that distinguish it from methods of the same name in its group.
    results
        By seed.
    """

    name: str
    settings: Settings
    differs: Settings
    results: tuple[Result, ...]

    @property
    def label(self) -> str:
        """``hierarchical, sampler.num_samples=8``."""
        return ", ".join([self.name, *assignments(self.differs)])

    def scores(self, metric: str, pick: Callable[[Result], Metrics]) -> dict[int, float]:
        """Seed to a metric of one kind of prediction, for the runs that have it."""
        picked = {result.seed: pick(result) for result in self.results}
        return {seed: metrics[metric] for seed, metrics in picked.items() if metric in metrics}

    def together(self, metric: str) -> dict[int, float]:
        """Seed to a metric of all modalities together."""
        return self.scores(metric, lambda result: result.test[TOGETHER])

    def best_alone(self, metric: str) -> tuple[str, float] | None:
        """Return the modality that is best alone, and its mean; None where none has a number."""
        names = dict.fromkeys(name for result in self.results for name in result.test)
        means = {name: self._mean_alone(name, metric) for name in names if name != TOGETHER}
        known = {name: mean for name, mean in means.items() if not math.isnan(mean)}
        sign = -1 if less_is_better(metric) else 1
        best = max(known, key=lambda name: sign * known[name], default=None)
        return None if best is None else (best, known[best])

    def _mean_alone(self, modality: str, metric: str) -> float:
        scores = self.scores(metric, lambda result: result.test.get(modality, {}))
        return spread(scores.values()).mean


#: A method to its scores by seed.
Scores = Callable[[Method], Mapping[int, float]]


@dataclass(frozen=True)
class ComparisonGroup:
    """Methods that were tried on the same data under the same conditions.

    Attributes
    ----------
    title_settings, other_settings
        Settings that differ among groups: those that suffice to distinguish them, and the rest.
    task
        Of all its runs.
    methods
        By name and settings.
    """

    title_settings: Settings
    other_settings: Settings
    task: Task
    methods: tuple[Method, ...]

    def baselines(self, name: str | None) -> list[Method]:
        """Return the method with a label, or all that have it as their ``strategy.name``."""
        labelled = [method for method in self.methods if method.label == name]
        return labelled or [method for method in self.methods if method.name == name]

    def baseline_of(self, method: Method, name: str | None) -> Method | None:
        """Return the baseline that is nearest in its settings; the first of equals."""

        def distance(baseline: Method) -> int:
            return sum(baseline.settings[key] != method.settings[key] for key in method.settings)

        return min(self.baselines(name), key=distance, default=None)

    def difference(
        self, method: Method, baseline: str | None, metric: str, scores: Scores
    ) -> Difference | None:
        """Compare a method with its baseline; None for the baseline itself, or without one."""
        other = self.baseline_of(method, baseline)
        if other is None or method in self.baselines(baseline):
            return None
        return paired_difference(scores(method), scores(other), less=less_is_better(metric))


def group_results(results: Sequence[Result]) -> tuple[ComparisonGroup, ...]:
    """Sort results into comparison groups of methods; raise `UserError` for equal runs."""
    _refuse_twins(results)
    names = [name for name in differing(results) if not _in(name, _REPLICATE)]
    outer = [name for name in names if not _in(name, _METHOD)]
    inner = [name for name in names if _in(name, _METHOD)]
    parts = _partition(results, outer)
    title = _distinguishing(outer, [members[0] for members in parts])
    others = [name for name in outer if name not in title]
    groups = [
        ComparisonGroup(
            _values(members[0], title),
            _values(members[0], others),
            members[0].task,
            _methods(members, inner),
        )
        for members in parts
    ]
    return tuple(sorted(groups, key=lambda each: list(map(_natural, each.title_settings.values()))))


def differing(results: Sequence[Result]) -> list[str]:
    """Names of the settings that are not the same in all results, in their order."""
    names = dict.fromkeys(name for result in results for name in result.settings)
    return [n for n in names if len({result.settings.get(n, ABSENT) for result in results}) > 1]


def assignments(settings: Settings) -> list[str]:
    """``name=value`` of each setting; the strategy's own without their group."""
    return [f"{name.removeprefix('strategy.')}={value}" for name, value in settings.items()]


def present(settings: Settings) -> dict[str, str]:
    """Leave out what a run's version, or its dataset, did not have."""
    return {name: value for name, value in settings.items() if value != ABSENT}


def _in(name: str, names: tuple[str, ...]) -> bool:
    return name in names or name.startswith(tuple(group for group in names if group[-1] == "."))


def _values(result: Result, names: Iterable[str]) -> dict[str, str]:
    return {name: result.settings.get(name, ABSENT) for name in names}


def _partition(results: Iterable[Result], names: Sequence[str]) -> list[list[Result]]:
    """Return results with equal values of some settings together."""
    parts: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        parts.setdefault(tuple(_values(result, names).values()), []).append(result)
    return list(parts.values())


def _methods(results: Sequence[Result], names: Sequence[str]) -> tuple[Method, ...]:
    methods = []
    for namesakes in _partition(results, ["strategy.name"]):
        here = set(differing(namesakes))
        for members in _partition(namesakes, names):
            settings = _values(members[0], names)
            differs = {name: value for name, value in settings.items() if name in here}
            seeds = tuple(sorted(members, key=lambda result: result.seed))
            methods.append(Method(seeds[0].settings["strategy.name"], settings, differs, seeds))
    return tuple(sorted(methods, key=lambda method: _natural(method.label)))


def _distinguishing(names: Iterable[str], results: Sequence[Result]) -> list[str]:
    """Return settings that suffice to distinguish results, names of things first."""
    chosen: list[str] = []
    for name in sorted(names, key=lambda name: not name.endswith(".name")):
        if len(_partition(results, [*chosen, name])) > len(_partition(results, chosen)):
            chosen.append(name)
    return chosen


def _natural(text: str) -> list[tuple[float, str]]:
    """Sort ``8`` before ``16``."""
    parts = re.split(r"(\d+(?:\.\d+)?)", text)
    return [(float(part), "") if index % 2 else (0.0, part) for index, part in enumerate(parts)]


def _refuse_twins(results: Iterable[Result]) -> None:
    seen: dict[frozenset[tuple[str, str]], Result] = {}
    for result in results:
        key = frozenset(
            (name, value)
            for name, value in result.settings.items()
            if name == "seed" or not _in(name, _REPLICATE)
        )
        if key in seen:
            raise UserError(
                f"{seen[key].folder} and {result.folder} are the same run, seed {result.seed}: "
                "settings are equal; leave one out"
            )
        seen[key] = result
