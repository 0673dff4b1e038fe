"""The product of experts with priors of their own, against Bayes' rule."""

import numpy as np
import pytest
import torch
from torch import Tensor

from common.config import FusionRule
from common.model.fusion import Expert, Fusion
from common.task import Task
from server.baselines.local import ExpertPrediction, combine

RULE = FusionRule.product_of_experts
EVERY = torch.ones(3, dtype=torch.bool)


def gaussian_expert(
    name: str, seen: Tensor, noise: float, mean: float, variance: float
) -> ExpertPrediction:
    """Say the exact posterior of y ~ N(mean, variance) after `seen` = y + N(0, noise).

    The model gives what was seen; the calibration is the posterior's line.
    """
    share = variance / (variance + noise)
    expert = Expert(share, (1 - share) * mean, 1 - share, 1.0, 10.0)
    fusion = Fusion(RULE, Task.regression, (mean, variance), {name: expert})
    return ExpertPrediction(name, fusion, seen[:, None], EVERY)


def test_numbers_give_the_exact_posterior_under_the_common_prior() -> None:
    seen = {"audio": torch.tensor([0.3, -1.0, 2.0]), "vision": torch.tensor([0.5, 1.0, 1.5])}
    experts = [
        gaussian_expert("audio", seen["audio"], 0.5, 0.2, 1.0),
        gaussian_expert("vision", seen["vision"], 2.0, -0.4, 3.0),
    ]
    joined = combine(experts, torch.tensor([0.1, 0.7], dtype=torch.float64), Task.regression)
    precision = 1 / 0.7 + 1 / 0.5 + 1 / 2.0
    expected = (0.1 / 0.7 + seen["audio"] / 0.5 + seen["vision"] / 2.0) / precision
    torch.testing.assert_close(joined.values, expected)
    assert joined.std is not None
    torch.testing.assert_close(joined.std, torch.full((3,), precision**-0.5))


@pytest.mark.parametrize("task", [Task.classification, Task.multilabel])
def test_classes_give_the_exact_posterior_under_the_common_prior(task: Task) -> None:
    rng = np.random.default_rng(0)
    shape = (2, 3, 4)
    likelihoods = torch.from_numpy(rng.uniform(0.1, 1.0, size=shape)).log()
    priors = torch.from_numpy(rng.dirichlet(np.ones(4), size=3))
    scores = priors.log() if task is Task.classification else priors.logit()
    experts = [
        ExpertPrediction(
            name,
            Fusion(RULE, task, tuple(scores[index].tolist()), {name: Expert()}),
            (scores[index] + likelihoods[index]).float(),
            EVERY,
        )
        for index, name in enumerate(["audio", "vision"])
    ]
    joined = combine(experts, scores[2], task)
    total = scores[2] + likelihoods.sum(dim=0)
    expected = total.softmax(dim=1) if task is Task.classification else total.sigmoid()
    torch.testing.assert_close(joined.values, expected.float())
    assert joined.std is None


@pytest.mark.parametrize("task", list(Task))
def test_what_an_absent_modality_says_does_not_matter(task: Task) -> None:
    outputs = 1 if task is Task.regression else 4
    prior = torch.tensor([0.1, 0.7]) if task is Task.regression else torch.full((4,), -1.4)
    experts = {"audio": Expert(0.5, 0.1, 0.6), "vision": Expert(0.7, 0.2, 0.8)}
    fusion = Fusion(RULE, task, tuple(prior.tolist()), experts)
    joined = []
    for absent in (0.5, float("nan")):
        said = torch.linspace(-1, 1, 3 * outputs).reshape(3, outputs)
        said[1] = absent
        predictions = [
            ExpertPrediction("audio", fusion, said, torch.tensor([True, False, True])),
            ExpertPrediction("vision", fusion, torch.ones(3, outputs), EVERY),
        ]
        joined.append(combine(predictions, prior, task).values)
    assert torch.equal(*joined) and joined[0].isfinite().all()
