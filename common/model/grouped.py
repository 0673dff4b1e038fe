"""How much one number tells of another among items that come in groups: speakers, videos."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Below this share of its mean square, a variance is rounding.
_ROUNDING = 1e-12


class Slope(NamedTuple):
    """A slope, and how many times it is its standard error, squared."""

    value: float
    statistic: float

    def scaled(self, unit: float) -> "Slope":
        """Return it in another unit."""
        return self._replace(value=self.value * unit)


def slope_in_groups(x: Floats, y: Floats, groups: NDArray[np.int64]) -> Slope | None:
    """Fit x = a + c y + u_g + e, with a random effect u of each group g; x, y and groups are (N,).

    By generalised least squares with the variances of Swamy and Arora 1972; where x or y is
    constant in each group, by that of the groups' means. A modality that shows who speaks, and no
    more of the label, has a slope from one group to the next by chance, and few groups tell little
    of it. None if no group has several items, or there are fewer than three.
    """
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    items, count = len(x), len(sizes)
    unit_x, unit_y = x.std(), y.std()
    if count < 3 or items - count < 2 or not unit_x or not unit_y:
        return None
    x, y = (x - x.mean()) / unit_x, (y - y.mean()) / unit_y
    means_x, means_y = (np.bincount(group, weights=values) / sizes for values in (x, y))
    inside_x, inside_y = x - means_x[group], y - means_y[group]
    left, between = _regress(means_x, means_y, np.zeros(count), np.sqrt(sizes))
    if min((inside_x**2).mean(), (inside_y**2).mean()) < _ROUNDING:
        return between.scaled(unit_x / unit_y)
    slope = inside_x @ inside_y / (inside_y @ inside_y)
    within = ((inside_x - slope * inside_y) ** 2).sum() / (items - count - 1)
    usual = items - (sizes**2).sum() / items
    effects = max(0.0, (left - (count - 2) * within) / usual)
    # A mean is taken out as far as it is of the group, and not of the label.
    taken = 1 - np.sqrt(within / (within + sizes * effects))[group]
    kept_x, kept_y = x - taken * means_x[group], y - taken * means_y[group]
    return _regress(kept_x, kept_y, taken, np.ones(items))[1].scaled(unit_x / unit_y)


def _regress(x: Floats, y: Floats, taken: Floats, weights: Floats) -> tuple[float, Slope]:
    """Fit x = a (1 - taken) + c y, all (N,), by weighted least squares; return RSS, and c."""
    table = weights[:, None] * np.stack([1 - taken, y], axis=1)
    target = weights * x
    spread = np.linalg.pinv(table.T @ table)
    fitted = spread @ table.T @ target
    left = float(((target - table @ fitted) ** 2).sum())
    error = left / (len(x) - 2) * spread[1, 1]
    return left, Slope(float(fitted[1]), float(fitted[1] ** 2 / error) if error > 0 else 0.0)
