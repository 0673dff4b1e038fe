"""A Gaussian's precision has the shape that its form says, or there is no Gaussian."""

import pytest
import torch

from common.posterior import Form, Gaussian, precision_shape

SHAPES = [(4, 3), (5,), (2, 3, 4), (1, 1), ()]


@pytest.mark.parametrize("shape", SHAPES)
def test_identity_has_no_precision_and_a_diagonal_is_shaped_like_the_mean(
    shape: tuple[int, ...],
) -> None:
    mean = torch.zeros(shape)
    assert precision_shape(mean, Form.identity) is None
    assert precision_shape(mean, Form.diagonal) == shape
    assert Gaussian(mean).form is Form.identity
    assert Gaussian(mean, torch.ones(shape), Form.diagonal).precision is not None


@pytest.mark.parametrize(
    ("shape", "columns"), [((4, 3), 3), ((2, 3, 4), 12), ((6, 1), 1), ((1, 5), 5), ((5,), 1)]
)
def test_row_precision_is_square_in_the_columns(shape: tuple[int, ...], columns: int) -> None:
    mean = torch.zeros(shape)
    assert precision_shape(mean, Form.row) == (columns, columns)
    assert Gaussian(mean, torch.eye(columns), Form.row).form is Form.row


@pytest.mark.parametrize(
    ("form", "precision"),
    [
        (Form.identity, (4, 3)),
        (Form.identity, ()),
        (Form.diagonal, None),
        (Form.diagonal, (1,)),
        (Form.diagonal, (3,)),
        (Form.diagonal, (4, 1)),
        (Form.diagonal, (3, 3)),
        (Form.row, None),
        (Form.row, (4, 3)),
        (Form.row, (4, 4)),
        (Form.row, (6,)),
    ],
)
def test_other_shapes_are_refused_and_named(form: Form, precision: tuple[int, ...] | None) -> None:
    tensor = None if precision is None else torch.ones(precision)
    with pytest.raises(ValueError) as raised:
        Gaussian(torch.zeros(4, 3), tensor, form)
    message = str(raised.value)
    assert form in message and str(precision) in message
    assert str(precision_shape(torch.zeros(4, 3), form)) in message


def test_gaussian_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Gaussian(torch.zeros(2)).mean = torch.ones(2)  # type: ignore[misc]
