"""What is predicted: a number, one of several classes, or several labels at once."""

from enum import StrEnum


class Task(StrEnum):
    """The kind of label, which decides the loss, the fusion and the metrics."""

    regression = "regression"
    classification = "classification"
    multilabel = "multilabel"
