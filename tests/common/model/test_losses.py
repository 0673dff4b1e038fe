"""Training losses and their gradients, by hand."""

import numpy as np
import pytest
import torch

from common.model.ha_fedformer import task_loss
from common.task import Task


def test_regression_is_the_mean_absolute_error() -> None:
    outputs = torch.tensor([[1.0], [-2.0], [0.5]], requires_grad=True)
    loss = task_loss(outputs, torch.tensor([2.0, -2.5, 3.0]), Task.regression)
    loss.backward()
    assert loss.item() == pytest.approx((1.0 + 0.5 + 2.5) / 3)
    np.testing.assert_allclose(outputs.grad[:, 0], [-1 / 3, 1 / 3, -1 / 3], rtol=1e-6)


def test_classes_take_the_mean_cross_entropy() -> None:
    logits = np.array([[1.0, 2.0, -1.0], [0.0, 0.0, 3.0]])
    labels = np.array([1, 0])
    outputs = torch.tensor(logits, requires_grad=True)
    loss = task_loss(outputs, torch.tensor(labels), Task.classification)
    loss.backward()
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert loss.item() == pytest.approx(-np.log(probabilities[[0, 1], labels]).mean())
    np.testing.assert_allclose(outputs.grad, (probabilities - np.eye(3)[labels]) / 2, rtol=1e-6)


def test_several_labels_take_the_mean_binary_cross_entropy_over_items_and_labels() -> None:
    logits = np.array([[1.0, -2.0], [0.5, 3.0], [-1.0, 0.0]])
    labels = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    outputs = torch.tensor(logits, requires_grad=True)
    loss = task_loss(outputs, torch.tensor(labels), Task.multilabel)
    loss.backward()
    chance = 1 / (1 + np.exp(-logits))
    expected = -(labels * np.log(chance) + (1 - labels) * np.log(1 - chance)).mean()
    assert loss.item() == pytest.approx(expected)
    np.testing.assert_allclose(outputs.grad, (chance - labels) / 6, rtol=1e-6)
