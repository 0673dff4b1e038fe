"""Joint predictions of modalities that were never trained together.

Four rules, each for any subset of modalities; the first is ``auto``:

- ``calibrated``: see `common.model.calibrated`;
- ``mean`` of the encodings, as in arXiv 2303.15486;
- ``reliability``: encodings weighted by the information that their modality carries about the
  label, 1/s_m^2 - 1/s_0^2 (s_m^2 residual variance of modality m, s_0^2 variance of the label),
  shrunk towards the mean if there is little evidence;
- ``product_of_experts`` on predictions, with the prior counted once.

Rules are fitted to the server's validation items and, where it has few, to the sums that clients
report (`common.model.calibration`). Numbers here are standardised, so that their prior is N(0, 1);
`common.model.predict` returns to the units of the label.

Classes and labels: ``mean`` and ``reliability`` decode the fused encodings and take the logits as
they come, which hold the prior once, however many modalities were fused. Experts' temperatures are
for the product alone, which multiplies posteriors that each hold the prior.

Numbers: the last three give a standard deviation too, that of the experts' product,
``1/s^2 = 1/s_0^2 + sum_m (1/s_m^2 - 1/s_0^2)``. It belongs to the product's mean. `mean` and
`reliability` put it around another centre, where it is an approximation that coverage must judge
(`common.metrics`).

Notation: B items, M modalities, T steps, d model width, K classes or labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from common.config import FusionRule
from common.model.calibrated import Joint
from common.model.calibration import INVERSE_TEMPERATURES, temper
from common.model.fit_joint import Opinions, evidence_of, fit_joint
from common.task import Task

#: The weight, in items, of the prior belief about a regression expert.
PSEUDO_ITEMS = 10


@dataclass(frozen=True)
class Expert:
    """A modality as a calibrated predictor: of standardised y = a + b p, else at a temperature."""

    slope: float = 1.0  # b, or the inverse temperature
    intercept: float = 0.0  # a
    unexplained: float = 1.0  # residual variance as a share of the label's, in (0, 1]
    # Information about the label, at least 0. Numbers: 1/unexplained - 1. Otherwise twice the nats
    # per item by which it beats the prior, which is the same for weak Gaussians.
    information: float = 0.0
    count: float = 0.0  # validation items behind these figures


@dataclass(frozen=True)
class Fusion:
    """A fitted rule."""

    rule: FusionRule  # never ``auto``
    task: Task
    # From `common.model.calibration.prior_of`; of numbers mean and variance, in label units.
    prior: tuple[float, ...]
    experts: Mapping[str, Expert]  # by modality
    joint: Joint = field(default_factory=Joint)  # of ``calibrated``

    @property
    def weights(self) -> dict[str, float]:
        """Modality to its share of the information; they sum to 1.

        `mean` and `reliability` weigh encodings by them. The others weigh by each expert's
        calibration instead; there they are only for display.
        """
        if self.rule is FusionRule.calibrated:
            return self.joint.weights(self.task)
        if self.rule is FusionRule.mean:
            return {name: 1 / len(self.experts) for name in self.experts}
        return reliability_weights(self.experts)

    def variances(self, names: Sequence[str]) -> list[float]:
        """Return s_m^2 of each named expert on standardised numbers."""
        return [self.experts[name].unexplained for name in names]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; `from_dict` undoes it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Fusion":
        """Rebuild from `to_dict`."""
        return cls(
            FusionRule(plain["rule"]),
            Task(plain["task"]),
            tuple(plain["prior"]),
            {name: Expert(**expert) for name, expert in plain["experts"].items()},
            Joint.from_dict(plain["joint"]),
        )


def fit_fusion(
    rule: FusionRule,
    task: Task,
    prior: Tensor,
    reported: Mapping[str, Tensor],
    items: Opinions | None = None,
) -> Fusion:
    """Fit every rule, and choose one.

    `reported` are each modality's calibration sums, of all its clients, zero if there are none yet;
    `items` what the model says of the server's validation items.
    """
    joint = fit_joint(task, prior, reported, items)
    evidence = {name: evidence_of(name, task, prior, reported[name], items) for name in reported}
    fit = _linear_expert if task is Task.regression else tempered_expert
    experts = {name: fit(sums) for name, sums in evidence.items()}
    chosen = FusionRule.calibrated if rule is FusionRule.auto else rule
    return Fusion(chosen, task, tuple(prior.tolist()), experts, joint)


def _linear_expert(sums: Tensor) -> Expert:
    """Fit y = a + b p, b >= 0, and its residual variance, adjusted for the two parameters.

    A line fits few items too well, so `PSEUDO_ITEMS` are added that follow the prior, and whose
    predictions, as spread as the others, explain at most a quarter of the label's variance.
    """
    n, y, yy, p, pp, py = sums.tolist()
    centre = p / n if n else 0.0
    spread = max(pp / n - centre**2, 0.0) if n else 1.0
    k = PSEUDO_ITEMS
    items, yy, p = n + k, yy + k, p + k * centre
    pp += k * (spread + centre**2)
    py += k * 0.5 * min(spread, 1.0)
    variance_y, variance_p = yy / items - (y / items) ** 2, pp / items - (p / items) ** 2
    covariance = py / items - (p / items) * (y / items)
    if variance_p <= 1e-12 * pp / items or covariance <= 0:
        return Expert(slope=0.0, count=n)
    slope = covariance / variance_p
    explained = slope * covariance / variance_y
    unexplained = min(max((1 - explained) * (items - 1) / (items - 2), 1e-3), 1.0)
    intercept = (y - slope * p) / items
    return Expert(slope, intercept, unexplained, 1 / unexplained - 1, n)


def tempered_expert(sums: Tensor) -> Expert:
    """Choose the temperature with the lowest pooled log-loss.

    The prior of log2 of the temperature is N(0, 2), so that a few items do not decide it: it takes
    4 nats to call a modality worthless.
    """
    n, losses = sums[0].item(), sums[1:]
    betas = torch.tensor(INVERSE_TEMPERATURES, dtype=losses.dtype).clamp(min=1 / 16)
    best = int((losses + betas.log2() ** 2 / 4).argmin())
    gain = max((losses[0] - losses[best]).item(), 0.0) / max(n, 1.0)
    return Expert(slope=INVERSE_TEMPERATURES[best], information=2 * gain, count=n)


def reliability_weights(experts: Mapping[str, Expert]) -> dict[str, float]:
    """Weigh modalities by their information, shrunk towards uniform if there are few items.

    n x information is a likelihood-ratio statistic against a modality without any information. With
    E their sum over modalities, the shrinkage is 1 / (1 + E).
    """
    modalities = len(experts)
    total = sum(expert.information for expert in experts.values())
    statistic = sum(expert.count * expert.information for expert in experts.values())
    shrinkage = 1 / (1 + statistic)
    return {
        name: shrinkage / modalities
        + (1 - shrinkage) * (expert.information / total if total > 0 else 1 / modalities)
        for name, expert in experts.items()
    }


def fuse_encodings(
    encodings: Mapping[str, Tensor],
    lengths: Mapping[str, Tensor],
    weights: Mapping[str, float],
    steps: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Average the encodings of the modalities present, aligned at the last step.

    Parameters
    ----------
    encodings
        Modality to (B, T_m, d), right-padded.
    lengths
        Modality to (B,); 0 where an item lacks it.
    weights
        Modality to its weight, above 0; renormalised over what is present at each step.
    steps
        T, for an export, which cannot depend on lengths; by default that of the longest item.

    Returns
    -------
    tuple
        (B, T, d) right-padded, and (B,) the length of each item's longest modality.
    """
    fused_lengths = torch.stack(list(lengths.values())).amax(dim=0)
    longest = int(fused_lengths.max()) if steps is None else steps
    places = torch.arange(longest, device=fused_lengths.device)
    total: Tensor | float = 0.0
    mass: Tensor | float = 0.0
    for name, encoding in encodings.items():
        # Step t of the fusion, counted from the end, is this step of the modality.
        own = places - (fused_lengths - lengths[name])[:, None]
        weight = weights[name] * ((own >= 0) & (own < lengths[name][:, None])).unsqueeze(2)
        index = own.clamp(0, encoding.shape[1] - 1).unsqueeze(2).expand(-1, -1, encoding.shape[2])
        # where, not a product: the encoding of an absent modality may be anything, even NaN.
        total = total + torch.where(weight > 0, weight * encoding.gather(1, index), 0.0)
        mass = mass + weight
    assert isinstance(total, Tensor) and isinstance(mass, Tensor)
    return total / mass.clamp(min=1e-12), fused_lengths


def product_of_gaussians(
    means: Tensor, variances: Tensor, present: Tensor, prior_mean: float, prior_variance: float
) -> tuple[Tensor, Tensor]:
    """Multiply Gaussian posteriors that share a prior, the prior counted once.

    ``[sum mu_m/s_m^2 - (M-1) mu_0/s_0^2] / [sum 1/s_m^2 - (M-1)/s_0^2]`` of means (M, B), variances
    (M,) of at most the prior's, and present (M, B) bool. Returns means and deviations, (B,) each.
    """
    # where, not a product: the prediction of an absent modality may be anything, even NaN.
    shifts = torch.where(present, present / variances[:, None] * means, 0.0)
    surplus = (present.sum(dim=0) - 1).to(means.dtype)
    mean = shifts.sum(dim=0) - surplus * prior_mean / prior_variance
    precision = _product_precision(variances, present, prior_variance)
    return mean / precision, precision.rsqrt()


def deviation_of_seen_experts(fusion: Fusion, names: Sequence[str], present: Tensor) -> Tensor:
    """Return the deviation of the product of experts on standardised numbers, whatever the centre.

    An expert that was fitted to no item adds nothing here; in the product it adds its prior belief.
    Of M modalities, present (M, B); returns (B,) float32.
    """
    seen = [
        variance if fusion.experts[name].count > 0 else 1.0
        for name, variance in zip(names, fusion.variances(names), strict=True)
    ]
    variances = torch.tensor(seen, dtype=torch.float32, device=present.device)
    return _product_precision(variances, present, prior_variance=1.0).rsqrt()


def _product_precision(variances: Tensor, present: Tensor, prior_variance: float) -> Tensor:
    """Add up precisions, the prior's once: (M,) variances and (M, B) bool to (B,)."""
    surplus = (present.sum(dim=0) - 1).to(variances.dtype)
    precision: Tensor = (present / variances[:, None]).sum(dim=0) - surplus / prior_variance
    return precision


def product_of_scores(scores: Tensor, present: Tensor, prior: Tensor) -> Tensor:
    """Multiply class or label posteriors that share a prior, the prior counted once.

    Of scores (M, B, K), present (M, B) and prior (K,), log-probabilities or logits; returns (B, K)
    log-probabilities up to a constant, or logits.
    """
    return prior + torch.where(present[:, :, None], scores - prior, 0.0).sum(dim=0)


def tempered_scores(fusion: Fusion, outputs: Mapping[str, Tensor]) -> Tensor:
    """Return (M, B, K): each modality's outputs at its temperature."""
    prior = torch.tensor(fusion.prior)
    return torch.stack(
        [
            temper(output, prior.to(output), fusion.experts[name].slope, fusion.task)
            for name, output in outputs.items()
        ]
    )
