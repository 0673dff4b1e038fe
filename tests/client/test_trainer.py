"""Local training: closed forms of single steps, what is sampled, what is refused."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import client.trainer
from client.objective import DensityRatio, Objective
from client.trainer import RoundOptions, Trained, read_moments, train, validation_outputs
from common.config import ClientConfig, ModelConfig, Optimizer, Sampler, SamplerConfig
from common.data.batching import pad_all
from common.data.dataset import Sequences
from common.data.federation import ClientData
from common.model.ha_fedformer import HAFedformer, ModelSpec, build_model
from common.task import Task

LAST = SamplerConfig(Sampler.last)


SMALL = ModelConfig(width=8, heads=2, layers=1, decoder_layers=1)
NO_DROPOUT = replace(SMALL, embedding_dropout=0.0, relu_dropout=0.0, residual_dropout=0.0)


def client_data(items: int = 40, *, validation: int = 10) -> ClientData:
    """Make ragged items whose label is a function of their last row."""
    rng, index = np.random.default_rng(0), np.arange(items)
    lengths = rng.integers(1, 6, items)
    starts = np.cumsum(lengths) - lengths
    values = rng.normal(size=(lengths.sum(), 4)).astype(np.float32)
    labels, sequences = values[starts + lengths - 1, 0], Sequences(values, starts, lengths)
    sides = (index[validation:], index[:validation][::-1].copy())
    return ClientData("audio", Task.regression, sequences, labels, *sides)


def model_for(config: ModelConfig = NO_DROPOUT) -> HAFedformer:
    return build_model(ModelSpec({"audio": (4,)}, 1, Task.regression, config), seed=0)


def settings(**changes: object) -> ClientConfig:
    config = ClientConfig(local_epochs=1, batch_size=10, device="cpu", weight_decay=0.0)
    return replace(config, **changes)


def one_batch(**changes: Any) -> ClientConfig:
    """All items in one step, by plain descent, not clipped."""
    plain = {"batch_size": 100, "optimizer": Optimizer.sgd, "max_grad_norm": 1e6}
    return settings(**{**plain, **changes})


def vector(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


def full_gradient(model: HAFedformer, data: ClientData) -> Tensor:
    """Return the gradient of the mean absolute error over all train items."""
    outputs = model("audio", pad_all(data.sequences.select(data.train)))[:, 0]
    loss = (outputs - torch.from_numpy(data.labels[data.train])).abs().mean()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([gradient.flatten() for gradient in gradients])


@pytest.mark.parametrize("max_norm", [0.01, 1e6])
def test_gradient_is_clipped_to_its_norm(max_norm: float) -> None:
    data, model = client_data(), model_for()
    before, gradient = vector(model), full_gradient(model, data)
    norm = gradient.norm().item()
    assert 0.01 < norm < 1e6
    train(model, data, one_batch(lr=0.5, max_grad_norm=max_norm), LAST, 0)
    step = before - vector(model)
    expected = 0.5 * gradient * min(1.0, max_norm / norm)
    torch.testing.assert_close(step, expected, rtol=1e-3, atol=1e-6)
    assert step.norm().item() == pytest.approx(0.5 * min(max_norm, norm), rel=1e-3)


@pytest.mark.parametrize(
    ("optimizer", "kept"), [(Optimizer.adamw, 1 - 0.01 * 0.5), (Optimizer.adam, 1)]
)
def test_first_step_of_adam_has_the_length_of_the_rate(optimizer: Optimizer, kept: float) -> None:
    # AdamW decays the weights, Adam without decay does not.
    data, model = client_data(), model_for()
    before, gradient = vector(model), full_gradient(model, data)
    decay = 0.5 if optimizer is Optimizer.adamw else 0.0
    config = one_batch(lr=0.01, weight_decay=decay, optimizer=optimizer)
    train(model, data, config, LAST, 0)
    clear = gradient.abs() > 1e-4
    assert clear.double().mean() > 0.5
    expected = kept * before - 0.01 * gradient.sign()
    torch.testing.assert_close(vector(model)[clear], expected[clear], rtol=1e-3, atol=1e-5)


def samples_of(trained: Trained) -> Tensor:
    return torch.cat([sample.flatten(1) for sample in trained.samples.values()], dim=1)


def test_samples_average_the_iterates_of_their_segments() -> None:
    # Six steps, the last four in two segments; the same run cut short gives every iterate.
    data, iterates = client_data(30), []
    for epochs in range(1, 7):
        model = model_for()
        train(model, data, one_batch(lr=0.05, local_epochs=epochs), LAST, 0)
        iterates.append(vector(model))
    sampler = SamplerConfig(Sampler.iasg, 2, 0.34)
    trained = train(model_for(), data, one_batch(lr=0.05, local_epochs=6), sampler, 0)
    expected = torch.stack([(iterates[2] + iterates[3]) / 2, (iterates[4] + iterates[5]) / 2])
    torch.testing.assert_close(samples_of(trained), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sampler", list(Sampler))
def test_every_weight_moves_and_is_sampled(sampler: Sampler) -> None:
    model, received = model_for(), dict(model_for().named_parameters())
    trained = train(model, client_data(), settings(), SamplerConfig(sampler), 0)
    assert trained.samples.keys() == received.keys()
    for name, weight in model.named_parameters():
        assert not torch.equal(weight, received[name]), name


def test_the_objective_is_what_is_minimised() -> None:
    data, model = client_data(), model_for()
    before, gradient = vector(model), full_gradient(model, data)
    # Of the density that the labels are weighed against, so that every item weighs 3.
    objective = Objective(Task.regression, weights=DensityRatio(0.0, 1.0, 3.0))
    trained = train(model, data, one_batch(lr=0.1), LAST, 0, RoundOptions(objective))
    torch.testing.assert_close(vector(model), before - 0.3 * gradient, rtol=1e-4, atol=1e-6)
    plain = train(model_for(), data, one_batch(lr=0.1), LAST, 0)
    assert trained.loss == pytest.approx(3 * plain.loss, rel=1e-5)


@pytest.mark.parametrize("optimizer", list(Optimizer))
def test_scaling_the_rate_is_training_at_that_rate(optimizer: Optimizer) -> None:
    data = client_data()
    config = settings(optimizer=optimizer, weight_decay=0.1, local_epochs=2)
    scaled, other = model_for(), model_for()
    train(scaled, data, replace(config, lr=0.02), LAST, 0, RoundOptions(lr_scale=0.5))
    train(other, data, replace(config, lr=0.01), LAST, 0)
    assert torch.equal(vector(scaled), vector(other))


def test_the_proximal_term_pulls_towards_what_was_received() -> None:
    # The first step is free of it; the second is not, and it is not clipped with the gradient.
    data, model, rate, mu, limit = client_data(), model_for(), 0.1, 2.0, 0.5
    received = vector(model)
    for _ in range(2):
        place, gradient = vector(model), full_gradient(model, data)
        assert gradient.norm() > limit
        pull = mu * (place - received)
        step = rate * (limit * gradient / gradient.norm() + pull)
        nn.utils.vector_to_parameters(place - step, model.parameters())
    assert pull.norm() > 0.05
    held, config = model_for(), one_batch(lr=rate, local_epochs=2, max_grad_norm=limit)
    train(held, data, config, LAST, 0, RoundOptions(proximal=mu))
    torch.testing.assert_close(vector(held), vector(model), rtol=1e-4, atol=1e-6)


def test_after_burn_in_sgld_makes_the_steps_itself() -> None:
    # Two steps of the optimiser, two of Langevin dynamics; those are not clipped.
    data, model = client_data(), model_for()
    train(model, data, one_batch(lr=0.05, local_epochs=2, max_grad_norm=0.1), LAST, 0)
    source = torch.Generator().manual_seed(8)
    deviation = (2 * 0.3 * 1.5 / len(data.train)) ** 0.5
    expected = []
    for _ in range(2):
        noise = torch.randn(len(vector(model)), generator=source)
        moved = vector(model) - 0.3 * full_gradient(model, data) + deviation * noise
        nn.utils.vector_to_parameters(moved, model.parameters())
        expected.append(moved)
    sampled = model_for()
    sampler = SamplerConfig(Sampler.sgld, 2, 0.5, lr=0.3, temperature=1.5)
    config = one_batch(lr=0.05, local_epochs=4, max_grad_norm=0.1)
    trained = train(sampled, data, config, sampler, 8)
    torch.testing.assert_close(samples_of(trained), torch.stack(expected), rtol=1e-3, atol=1e-4)
    assert torch.equal(vector(sampled), samples_of(trained)[-1])
    assert trained.steps == 4


def test_sghmc_starts_at_rest_after_burn_in_and_feels_the_proximal_term() -> None:
    data, mu, rate = client_data(), 3.0, 0.1
    received, model = vector(model_for()), model_for()
    options = RoundOptions(proximal=mu)
    train(model, data, one_batch(lr=0.05, local_epochs=2), LAST, 0, options)
    velocity = torch.zeros_like(received)
    for _ in range(2):
        place = vector(model)
        gradient = full_gradient(model, data) + mu * (place - received)
        velocity = 0.8 * velocity - rate * gradient
        nn.utils.vector_to_parameters(place + velocity, model.parameters())
    sampled = model_for()
    sampler = SamplerConfig(Sampler.sghmc, 2, 0.5, lr=rate, temperature=0.0, friction=0.2)
    train(sampled, data, one_batch(lr=0.05, local_epochs=4), sampler, 0, options)
    torch.testing.assert_close(vector(sampled), vector(model), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("label", [float("nan"), float("inf")])
def test_loss_that_is_not_finite_raises(label: float) -> None:
    data = client_data()
    data.labels[data.train[3]] = label
    with pytest.raises(FloatingPointError, match="lr"):
        train(model_for(), data, settings(), LAST, 0)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_validation_outputs_are_in_the_order_of_the_items(batch_size: int) -> None:
    data, model = client_data(), model_for(SMALL)
    outputs = validation_outputs(model, data, batch_size)
    assert outputs.shape == (10, 1)
    model.eval()
    for item, output in zip(data.validation, outputs, strict=True):
        alone = model("audio", pad_all(data.sequences.select(np.array([item]))))
        torch.testing.assert_close(output, alone[0].detach(), rtol=1e-4, atol=1e-5)
    assert outputs.std() > 1e-3


def test_moments_are_measured_over_as_many_items_as_have_enough_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Evenly spaced ones, with the first and the last."""
    data, model, seen = client_data(200), model_for(), []
    monkeypatch.setattr(client.trainer, "MEASURED_ITEMS", 3)
    items = client.trainer.SequenceItems

    def noted(sequences: Any, labels: Any, chosen: Any) -> Any:
        seen.append(chosen)
        return items(sequences, labels, chosen)

    monkeypatch.setattr(client.trainer, "SequenceItems", noted)
    steps = int(data.sequences.lengths[data.train].sum())
    for most in (steps, steps // 4, 1):
        monkeypatch.setattr(client.trainer, "MEASURED_STEPS", most)
        read_moments(model, data)
    every, quarter, few = (chosen.tolist() for chosen in seen)
    assert every == data.train.tolist()
    assert len(quarter) == pytest.approx(len(every) / 4, abs=1)
    assert len(few) == 3
    for chosen in (quarter, few):
        assert (chosen[0], chosen[-1]) == (every[0], every[-1])
        assert np.ptp(np.diff(np.searchsorted(every, chosen))) <= 1
