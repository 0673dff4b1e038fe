"""The product of experts with priors of their own, against Bayes' rule."""

import numpy as np
import pytest
import torch
from torch import Tensor

from common.config import FusionRule
from common.model.fusion import Expert, Fusion, product_of_gaussians
from common.task import Task
from server.baselines.experts import ExpertPrediction, combine

RULE = FusionRule.product_of_experts
EVERY = torch.ones(3, dtype=torch.bool)


def gaussian_expert(
    name: str, seen: Tensor, noise: float, mean: float, variance: float, present: Tensor = EVERY
) -> ExpertPrediction:
    """Say the exact posterior of y ~ N(mean, variance) after `seen` = y + N(0, noise).

    The model gives what was seen; the calibration is the posterior's line.
    """
    share = variance / (variance + noise)
    expert = Expert(share, (1 - share) * mean, 1 - share, 1.0, 10.0)
    fusion = Fusion(RULE, Task.regression, (mean, variance), {name: expert})
    return ExpertPrediction(name, fusion, seen[:, None], present)


def test_numbers_give_the_exact_posterior_under_the_common_prior() -> None:
    seen = {"audio": torch.tensor([0.3, -1.0, 2.0]), "vision": torch.tensor([0.5, 1.0, 1.5])}
    opinions = [
        gaussian_expert("audio", seen["audio"], 0.5, 0.2, 1.0),
        gaussian_expert("vision", seen["vision"], 2.0, -0.4, 3.0),
    ]
    found = combine(opinions, torch.tensor([0.1, 0.7], dtype=torch.float64), Task.regression)
    precision = 1 / 0.7 + 1 / 0.5 + 1 / 2.0
    expected = (0.1 / 0.7 + seen["audio"] / 0.5 + seen["vision"] / 2.0) / precision
    torch.testing.assert_close(found.values, expected)
    assert found.std is not None
    torch.testing.assert_close(found.std, torch.full((3,), precision**-0.5))


def test_with_one_prior_it_is_the_product_of_gaussians() -> None:
    seen = torch.tensor([0.3, -1.0, 2.0])
    present = torch.tensor([True, False, True])
    opinions = [
        gaussian_expert("audio", seen, 0.5, 0.2, 1.0, present),
        gaussian_expert("vision", -seen, 2.0, 0.2, 1.0),
    ]
    found = combine(opinions, torch.tensor([0.2, 1.0]), Task.regression)
    experts = [opinion.fusion.experts[opinion.modality] for opinion in opinions]
    means = torch.stack(
        [e.intercept + e.slope * o.outputs[:, 0] for e, o in zip(experts, opinions, strict=True)]
    )
    variances = torch.tensor([e.unexplained for e in experts])
    values, std = product_of_gaussians(means, variances, torch.stack([present, EVERY]), 0.2, 1.0)
    torch.testing.assert_close(found.values, values)
    torch.testing.assert_close(found.std, std)


@pytest.mark.parametrize("task", [Task.classification, Task.multilabel])
def test_classes_give_the_exact_posterior_under_the_common_prior(task: Task) -> None:
    rng = np.random.default_rng(0)
    shape = (2, 3, 4)
    likelihoods = torch.from_numpy(rng.uniform(0.1, 1.0, size=shape)).log()
    priors = torch.from_numpy(rng.dirichlet(np.ones(4), size=3))
    scores = priors.log() if task is Task.classification else priors.logit()
    opinions = [
        ExpertPrediction(
            name,
            Fusion(RULE, task, tuple(scores[index].tolist()), {name: Expert()}),
            (scores[index] + likelihoods[index]).float(),
            EVERY,
        )
        for index, name in enumerate(["audio", "vision"])
    ]
    found = combine(opinions, scores[2], task)
    total = scores[2] + likelihoods.sum(dim=0)
    expected = total.softmax(dim=1) if task is Task.classification else total.sigmoid()
    torch.testing.assert_close(found.values, expected.float())
    assert found.std is None


def fusion_of(task: Task, prior: Tensor, name: str, expert: Expert) -> Fusion:
    return Fusion(RULE, task, tuple(prior.tolist()), {name: expert})


@pytest.mark.parametrize("task", list(Task))
def test_what_an_absent_modality_says_does_not_matter(task: Task) -> None:
    outputs = 1 if task is Task.regression else 4
    prior = torch.tensor([0.1, 0.7]) if task is Task.regression else torch.full((4,), -1.4)
    present = torch.tensor([True, False, True])
    found = []
    for absent in (0.5, float("nan")):
        said = torch.linspace(-1, 1, 3 * outputs).reshape(3, outputs)
        said[1] = absent
        opinions = [
            ExpertPrediction(name, fusion_of(task, prior, name, expert), each, there)
            for name, expert, each, there in (
                ("audio", Expert(0.5, 0.1, 0.6), said, present),
                ("vision", Expert(0.7, 0.2, 0.8), torch.ones(3, outputs), EVERY),
            )
        ]
        found.append(combine(opinions, prior, task).values)
    assert torch.equal(*found) and found[0].isfinite().all()
