"""ONNX models that a user names, run by onnxruntime on the CPU."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import UserError
from server.extraction.method import library, model_place, sha256_of


class OnnxModel:
    """A model with one input of float32 numbers; its first output counts.

    Raises `UserError` if the file is missing, no model, or takes something else.
    """

    def __init__(self, setting: str, given: str, takes: str) -> None:
        path = model_place(setting, given)
        runtime = library("onnxruntime", f"{setting}={given}")
        options = runtime.SessionOptions()
        options.log_severity_level = 4
        try:
            self._session = runtime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise UserError(f"{setting}={given} is no ONNX model: {_first(error)}") from error
        inputs = self._session.get_inputs()
        #: Of the input; a dimension that may be any is None.
        self.shape = [size if isinstance(size, int) else None for size in inputs[0].shape]
        if len(inputs) != 1 or inputs[0].type != "tensor(float)":
            has = ", ".join(f"{each.name} {each.type} {each.shape}" for each in inputs)
            raise UserError(f"{setting}={given} takes {has}; expected {takes}")
        self.refusal = UserError(f"{setting}={given} takes {inputs[0].shape}; expected {takes}")
        #: Of the file, and of the files of weights beside it.
        self.sha256 = sha256_of(path.parent.glob(f"{_plain(path.name)}*"))
        self._input = inputs[0].name

    def __call__(self, array: NDArray[np.float32]) -> NDArray[Any]:
        """Return the first output; `UserError` if the model cannot take the array."""
        try:
            output: NDArray[Any] = self._session.run(None, {self._input: array})[0]
        except Exception as error:
            raise UserError(f"the model refuses it: {_first(error)}") from error
        return output


def _plain(name: str) -> str:
    """Return a name as a pattern that only it fits."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
