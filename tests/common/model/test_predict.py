"""Prediction from any subset: against each item by itself, and against Bayes on simulations."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from made_up_models import RULES, SIZES, WIDTHS, features_for, fusion_for, model_for, sequences_for
from torch import Tensor

from common.config import FusionRule
from common.data.batching import Padded, pad_all
from common.model.calibration import calibration_sums, label_sums, prior_of, standardise
from common.model.encoder import valid_steps
from common.model.fusion import Expert, Fusion, fit_fusion, fuse_encodings
from common.model.ha_fedformer import HAFedformer
from common.model.predict import Prediction, encode, predict, predict_encoded, to_values
from common.task import Task

LENGTHS = {"language": [4, 0, 2, 3, 0], "audio": [6, 5, 0, 1, 0], "vision": [0, 3, 0, 2, 7]}
ITEMS = 5

every_task = pytest.mark.parametrize("task", list(Task))
every_rule = pytest.mark.parametrize("rule", RULES)
#: Those that each modality has one expert for; `calibrated` has tests of its own.
OF_EXPERTS = [rule for rule in RULES if rule is not FusionRule.calibrated]
fusing = pytest.mark.parametrize("rule", [FusionRule.mean, FusionRule.reliability])


def model(task: Task, **changes: object) -> HAFedformer:
    return model_for(task, sizes=replace(SIZES, layers=2, decoder_layers=2, **changes))


def inputs(garbage: float = 0.0) -> dict[str, Padded]:
    """Pad sequences of unlike lengths, some of them 0."""
    batch = {}
    for name, sequences in sequences_for(features_for(LENGTHS)).items():
        values, lengths = pad_all(sequences)
        beyond = ~valid_steps(lengths, values.shape[1])[:, :, None]
        batch[name] = Padded(values.masked_fill(beyond, garbage), lengths)
    return batch


def item_of(batch: dict[str, Padded], item: int) -> dict[str, Padded]:
    """Cut one item out, without its padding and without the modalities that it lacks."""
    return {
        name: Padded(values[[item], : lengths[item]], lengths[[item]])
        for name, (values, lengths) in batch.items()
        if lengths[item] > 0
    }


def rows_of(batch: dict[str, Padded], items: list[int]) -> dict[str, Padded]:
    return {name: Padded(p.values[items], p.lengths[items]) for name, p in batch.items()}


def assert_close(found: Prediction, expected: Prediction) -> None:
    torch.testing.assert_close(found.values, expected.values, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std, expected.std, atol=1e-5, rtol=0)


@every_task
@fusing
def test_encodings_are_fused_and_decoded_as_item_by_item(rule: FusionRule, task: Task) -> None:
    built, batch, fusion = model(task), inputs(), fusion_for(task, rule)
    found = predict(built, fusion, batch)
    for item in range(ITEMS):
        own = encode(built, item_of(batch, item))
        with torch.inference_mode():
            fused = fuse_encodings(own.encodings, own.lengths, fusion.weights)
            total = sum(fusion.weights[name] for name in own.linear)
            linear = sum(fusion.weights[name] / total * own.linear[name] for name in own.linear)
            (expected,) = to_values(built.decoder(*fused) + linear, task)
        if task is Task.regression:
            present = [name for name, lengths in own.lengths.items() if lengths > 0]
            if len(present) == 1:
                expert = fusion.experts[present[0]]
                expected = expert.intercept + expert.slope * expected
            expected = fusion.prior[0] + math.sqrt(fusion.prior[1]) * expected
        torch.testing.assert_close(found.values[item], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rule", OF_EXPERTS)
def test_a_modality_alone_gives_numbers_on_its_expert_s_line_with_the_line_s_deviation(
    rule: FusionRule,
) -> None:
    built, batch, fusion = model(Task.regression), inputs(), fusion_for(Task.regression, rule)
    mean, deviation = fusion.prior[0], math.sqrt(fusion.prior[1])
    for name, expert in fusion.experts.items():
        own = rows_of({name: batch[name]}, [i for i, n in enumerate(LENGTHS[name]) if n])
        with torch.inference_mode():
            raw = built(name, own[name])[:, 0]
        line = mean + deviation * (expert.intercept + expert.slope * raw)
        std = torch.full_like(line, deviation * math.sqrt(expert.unexplained))
        assert_close(predict(built, fusion, own), Prediction(line, std))


@fusing
def test_an_expert_that_saw_no_item_leaves_numbers_and_the_prior_s_deviation(
    rule: FusionRule,
) -> None:
    built, fusion = model(Task.regression), fusion_for(Task.regression, rule)
    unseen = replace(fusion, experts={"audio": replace(fusion.experts["audio"], count=0.0)})
    own = rows_of({"audio": inputs()["audio"]}, [0, 1])
    with torch.inference_mode():
        raw = built("audio", own["audio"])[:, 0]
    deviation = math.sqrt(fusion.prior[1])
    expected = Prediction(fusion.prior[0] + deviation * raw, torch.full((2,), deviation))
    assert_close(predict(built, unseen, own), expected)


@pytest.mark.parametrize("garbage", [1e6, math.nan, -math.inf])
@pytest.mark.parametrize(("kernel_size", "causal"), [(1, False), (3, False), (3, True)])
@every_rule
def test_padding_does_not_change_a_prediction(
    rule: FusionRule, kernel_size: int, causal: bool, garbage: float
) -> None:
    built = model(Task.regression, kernel_size=kernel_size, causal=causal)
    clean = predict(built, fusion_for(Task.regression, rule), inputs())
    longer = {
        name: Padded(torch.cat([values, torch.full_like(values, garbage)], dim=1), lengths)
        for name, (values, lengths) in inputs(garbage).items()
    }
    assert_close(predict(built, fusion_for(Task.regression, rule), longer), clean)


@every_rule
def test_an_item_with_nothing_raises_and_is_named(rule: FusionRule) -> None:
    batch = rows_of(inputs(), [0, 2, 4])
    short = {name: batch[name] for name in ("audio", "vision")}
    with pytest.raises(ValueError, match="item 1 of the batch has none of audio, vision"):
        predict(model(Task.regression), fusion_for(Task.regression, rule), short)


def every_subset() -> list[list[str]]:
    return [list(names) for size in (1, 2, 3) for names in itertools.combinations(WIDTHS, size)]


@every_task
def test_one_encoding_answers_for_every_rule_and_subset(task: Task) -> None:
    built, batch = model(task), rows_of(inputs(), [3, 3])
    encoded = encode(built, batch)
    for rule, names in itertools.product([*RULES, *reversed(RULES)], every_subset()):
        found = predict_encoded(built, fusion_for(task, rule), encoded, names)
        expected = predict(built, fusion_for(task, rule), {name: batch[name] for name in names})
        assert torch.equal(found.values, expected.values)
        assert task is not Task.regression or torch.equal(found.std, expected.std)


def test_each_modality_is_decoded_alone_once_for_all_subsets() -> None:
    built, decoded = model(Task.regression), []
    built.decoder.register_forward_hook(lambda *_: decoded.append(1))
    encoded = encode(built, rows_of(inputs(), [3]))
    for rule, expected in ((FusionRule.product_of_experts, 3), (FusionRule.mean, 3 + 7)):
        for names in every_subset():
            predict_encoded(built, fusion_for(Task.regression, rule), encoded, names)
        assert len(decoded) == expected


@pytest.mark.parametrize("asked_before", [False, True])
@every_rule
def test_selected_items_are_predicted_as_before(rule: FusionRule, asked_before: bool) -> None:
    built = model(Task.regression)
    by_experts = fusion_for(Task.regression, FusionRule.product_of_experts)
    encoded = encode(built, inputs())
    together = predict_encoded(built, fusion_for(Task.regression, rule), encoded, list(WIDTHS))
    if asked_before:
        predict_encoded(built, by_experts, encoded, list(WIDTHS))
    chosen = torch.tensor([True, False, False, True, True])
    some = encoded.select(chosen)
    found = predict_encoded(built, fusion_for(Task.regression, rule), some, list(WIDTHS))
    assert_close(found, Prediction(together.values[chosen], together.std[chosen]))
    assert encoded.select(torch.ones(ITEMS, dtype=torch.bool)) is encoded


@pytest.mark.parametrize("task", [Task.classification, Task.multilabel])
@fusing
def test_decoded_logits_are_not_corrected_for_a_prior_or_tempered(
    rule: FusionRule, task: Task
) -> None:
    built, batch, fusion = model(task), inputs(), fusion_for(task, rule)
    sharper = {name: replace(expert, slope=2.0) for name, expert in fusion.experts.items()}
    other = replace(fusion, prior=tuple(5.0 * each for each in fusion.prior), experts=sharper)
    found = predict(built, other, batch).values
    assert torch.equal(found, predict(built, fusion, batch).values)


#
# The stand-in for a model hands its input on: its encodings are each modality's own posterior, so
# the Bayesian answer is known.


class PassOn:
    """A model whose outputs are the last steps of what it is given."""

    def encode(self, _: str, padded: Padded) -> Tensor:
        return padded.values

    def decoder(self, encodings: Tensor, lengths: Tensor) -> Tensor:
        return encodings[torch.arange(len(encodings)), lengths.clamp(min=1) - 1]

    def linear_outputs(self, _: str, padded: Padded) -> Tensor:
        return torch.zeros_like(padded.values[:, 0])


def predict_from(outputs: Tensor, rule: Fusion) -> Prediction:
    """Predict from outputs (M, B, O), one step each, of the first M modalities."""
    given = {
        name: Padded(own[:, None], torch.ones(len(own), dtype=torch.int64))
        for name, own in zip(rule.experts, outputs, strict=False)
    }
    return predict(PassOn(), rule, given)


def fit(rule: FusionRule, outputs: Tensor, labels: Tensor, pooled: Tensor | None = None) -> Fusion:
    """Fit a rule to outputs (M, B, 1), with the prior of the labels pooled."""
    sums = label_sums(labels if pooled is None else pooled, Task.regression, 1)
    prior = prior_of(sums, Task.regression)
    standard = torch.from_numpy(standardise(labels.numpy(), prior, Task.regression))
    return fit_fusion(
        rule,
        Task.regression,
        prior,
        {
            f"m{k}": calibration_sums(own, standard, prior, Task.regression)
            for k, own in enumerate(outputs)
        },
    )


def simulated_numbers(noise: list[float], items: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw y ~ N(.5, 2) and each modality's E[y | z_m], standardised, z_m = y + N(0, noise_m)."""
    source = torch.Generator().manual_seed(seed)
    labels = 0.5 + math.sqrt(2.0) * torch.randn(items, generator=source)
    outputs = []
    for variance in noise:
        seen = labels + math.sqrt(variance) * torch.randn(items, generator=source)
        outputs.append(math.sqrt(2.0) / (2.0 + variance) * (seen - 0.5))
    return torch.stack(outputs)[:, :, None], labels


# Bayes' theorem from the joint densities, for modalities that are independent given the label.

MODALITIES = 3
CHOICES = [chosen for chosen in itertools.product([0, 1], repeat=MODALITIES) if any(chosen)]
SHARES = np.array([0.1, 0.2, 0.3, 0.4])


def predict_choices(
    task: Task,
    prior: object,
    experts: list[Expert],
    outputs: list,
    rule: FusionRule = FusionRule.product_of_experts,
) -> Prediction:
    """Predict one item from each choice of its modalities, given their own posteriors (O,)."""
    names = [f"m{k}" for k in range(MODALITIES)]
    given = {
        name: Padded(torch.as_tensor(own).expand(len(CHOICES), 1, -1), present)
        for name, own, present in zip(names, outputs, torch.tensor(CHOICES).T, strict=True)
    }
    fitted = Fusion(rule, task, tuple(map(float, prior)), dict(zip(names, experts, strict=True)))
    return predict(PassOn(), fitted, given)


def some_gaussians(seed: int, classes: int) -> list[list]:
    """Draw a Gaussian of 1, 2 or 3 dimensions for each modality and class."""
    source, normal = np.random.default_rng(seed), scipy.stats.multivariate_normal
    roots = [source.normal(size=(classes, width, width)) for width in range(1, MODALITIES + 1)]
    return [
        [normal(source.normal(size=len(r)), r @ r.T + np.eye(len(r))) for r in own] for own in roots
    ]


@pytest.mark.parametrize("seed", range(5))
def test_any_subset_of_classes_is_the_posterior_of_bayes(seed: int) -> None:
    densities = some_gaussians(seed, len(SHARES))
    seen = [own[seed % 4].rvs(random_state=seed) for own in densities]
    likelihoods = np.array(
        [[each.pdf(z) for each in own] for own, z in zip(densities, seen, strict=True)]
    )
    # Half as sure as they should be, which an inverse temperature of 2 undoes.
    alone = [np.log(SHARES) + np.log(own) / 2 for own in likelihoods]
    found = predict_choices(Task.classification, np.log(SHARES), [Expert(2.0)] * 3, alone)
    for item, chosen in enumerate(CHOICES):
        joint = SHARES * likelihoods[np.array(chosen) > 0].prod(axis=0)
        np.testing.assert_allclose(found.values[item], joint / joint.sum(), rtol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_any_subset_of_several_labels_is_the_posterior_of_bayes(seed: int) -> None:
    chance = np.array([0.05, 0.6])
    likelihoods = np.empty((MODALITIES, 2, 2))  # modality, label, absent or present
    for label in (0, 1):  # each has features of its own in each modality
        for modality, own in enumerate(some_gaussians(10 * seed + label, 2)):
            seen = own[1].rvs(random_state=seed)
            likelihoods[modality, label] = [each.pdf(seen) for each in own]
    prior = np.log(chance / (1 - chance))
    alone = prior + np.log(likelihoods[:, :, 1] / likelihoods[:, :, 0]) / 2
    found = predict_choices(Task.multilabel, prior, [Expert(2.0)] * 3, list(alone))
    for item, chosen in enumerate(CHOICES):
        absent, present = likelihoods[np.array(chosen) > 0].prod(axis=0).T
        expected = chance * present / (chance * present + (1 - chance) * absent)
        np.testing.assert_allclose(found.values[item], expected, rtol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_any_subset_of_numbers_is_the_posterior_of_bayes(seed: int) -> None:
    # z_m = a_m + b_m y + noise in 1, 2 and 3 dimensions; the expert undoes a false scale.
    source, mean, variance = np.random.default_rng(seed), 0.7, 2.5
    loadings = [source.normal(size=width) for width in (1, 2, 3)]
    offsets = [source.normal(size=width) for width in (1, 2, 3)]
    roots = [source.normal(size=(width, width)) for width in (1, 2, 3)]
    noise = [root @ root.T + np.eye(len(root)) for root in roots]
    seen = [offset + 3 * source.normal(size=len(offset)) for offset in offsets]

    def condition(chosen: np.ndarray) -> tuple[float, float]:
        """Condition y on the observations of some modalities by their joint covariance."""
        b = np.concatenate([loadings[m] for m in chosen])
        expected = np.concatenate([offsets[m] + mean * loadings[m] for m in chosen])
        among = variance * np.outer(b, b) + scipy.linalg.block_diag(*(noise[m] for m in chosen))
        gain = variance * np.linalg.solve(among, b)
        shift = gain @ (np.concatenate([seen[m] for m in chosen]) - expected)
        return mean + shift, variance * (1 - gain @ b)

    alone = [condition(np.array([m])) for m in range(MODALITIES)]
    experts = [Expert(2.0, 0.3, own / variance, variance / own - 1, 9) for _, own in alone]
    standard = [(centre - mean) / math.sqrt(variance) for centre, _ in alone]
    outputs = [np.array([(centre - 0.3) / 2.0]) for centre in standard]
    problem = (Task.regression, (mean, variance), experts, outputs)
    found = predict_choices(*problem)
    # Rules that fuse encodings have another centre, with the same deviation.
    others = [predict_choices(*problem, rule) for rule in OF_EXPERTS]
    for item, chosen in enumerate(CHOICES):
        centre, spread = condition(np.flatnonzero(chosen))
        np.testing.assert_allclose(found.values[item], centre, rtol=1e-6)
        for each in (found, *others):
            np.testing.assert_allclose(each.std[item], math.sqrt(spread), rtol=1e-6)
            if sum(chosen) == 1:
                np.testing.assert_allclose(each.values[item], centre, rtol=1e-6)


@pytest.mark.parametrize("rule", [FusionRule.reliability, FusionRule.product_of_experts])
def test_ten_items_of_evidence_do_not_make_a_rule_worse_than_the_mean(rule: FusionRule) -> None:
    total = {rule: 0.0, FusionRule.mean: 0.0}
    for seed in range(30):
        outputs, labels = simulated_numbers([2.0] * 3, 1010, seed)
        for each in total:
            fitted = fit(each, outputs[:, :10], labels[:10], pooled=labels)
            error = predict_from(outputs[:, 10:], fitted).values - labels[10:]
            total[each] += (error**2).mean().item()
    assert total[rule] <= 1.05 * total[FusionRule.mean]


def test_a_useless_modality_drags_the_mean_and_not_the_other_rules() -> None:
    outputs, labels = simulated_numbers([1.0, 1.0], 6000, seed=0)
    outputs[1] = math.sqrt(2.0) * torch.randn(6000, 1, generator=torch.Generator().manual_seed(7))
    truth = labels[2000:]
    errors = {}
    for rule in RULES:
        fitted = fit(rule, outputs[:, :2000], labels[:2000])
        errors[rule] = ((predict_from(outputs[:, 2000:], fitted).values - truth) ** 2).mean()
    alone = ((0.5 + math.sqrt(2.0) * outputs[0, 2000:, 0] - truth) ** 2).mean()
    assert errors[FusionRule.mean] > 1.5 * alone
    assert errors[FusionRule.reliability] < 1.02 * alone
    assert errors[FusionRule.product_of_experts] < 1.02 * alone


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_a_useless_modality_leaves_the_product_of_the_others_alone(shift: float) -> None:
    # The second modality's validation labels lie higher than the pooled ones by `shift`.
    outputs, labels = simulated_numbers([1.0, 1.0], 2000, seed=0)
    outputs[1] *= -1
    first, second = (
        fit(FusionRule.product_of_experts, outputs, each, pooled=labels)
        for each in (labels, labels + shift)
    )
    rule = replace(first, experts={"m0": first.experts["m0"], "m1": second.experts["m1"]})
    assert_close(predict_from(outputs, rule), predict_from(outputs[:1], rule))
