"""A Gaussian's precision has the shape that its form says, or there is no Gaussian."""

import pytest
import torch

from common.posterior import Form, Gaussian, precision_shape


@pytest.mark.parametrize(
    ("form", "precisions"),
    [
        (Form.identity, [(4, 3), ()]),
        (Form.diagonal, [None, (1,), (3,), (4, 1), (3, 3)]),
        (Form.row, [None, (4, 3), (4, 4), (6,)]),
    ],
)
def test_other_shapes_are_refused_and_named(form: Form, precisions: list) -> None:
    expected = str(precision_shape(torch.zeros(4, 3), form))
    for precision in precisions:
        tensor = None if precision is None else torch.ones(precision)
        with pytest.raises(ValueError, match=form) as raised:
            Gaussian(torch.zeros(4, 3), tensor, form)
        assert str(precision) in str(raised.value) and expected in str(raised.value)
