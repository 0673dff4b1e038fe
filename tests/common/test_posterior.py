"""A Gaussian's precision has the shape that its form says, or there is no Gaussian."""

import pytest
import torch

from common.posterior import Form, Gaussian, precision_shape


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
