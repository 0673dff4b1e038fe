"""Videos to what an ONNX model makes of a picture every so many seconds.

Notation: H height, W width, D features.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.config import ExtractConfig
from common.data.extractor import Extractor
from common.errors import UserError
from server.extraction.media import VIDEO, read_pictures
from server.extraction.method import Features, Loaded, Method, Recording, checked
from server.extraction.onnx_model import OnnxModel

_TAKES = "float32 of shape (1, 3, height, width) or (1, height, width, 3)"

#: Features of a picture: more are pictures still.
_WIDEST = 8192


def load(config: ExtractConfig) -> Loaded:
    """Load the ONNX model that ``video.model`` names, without which there are no features."""
    video = config.video
    if video.model is None:
        raise UserError(
            f"video needs a model of pictures: give video.model=MODEL.onnx, which takes {_TAKES}, "
            "RGB, and returns (1, width)"
        )
    model = OnnxModel("video.model", video.model, _TAKES)
    first, size = picture_size(model.shape, video.size) or (False, (0, 0))
    if size == (0, 0):
        raise model.refusal
    mean, std = (np.array(given, dtype=np.float32) for given in (video.mean, video.std))
    settings = {"every": video.every, "size": size, "mean": video.mean, "std": video.std}
    extractor = Extractor("video-onnx", "1", settings | {"sha256": model.sha256})

    def extract(recording: Recording) -> Features:
        path = Path(recording.source)
        steps = []
        for picture in read_pictures(path, video.every, size, config.max_minutes):
            colours = np.asarray((picture / np.float32(255) - mean) / std, dtype=np.float32)
            steps.append(_vector(model, colours.transpose(2, 0, 1) if first else colours))
        return checked(np.stack(steps))

    return Loaded(extractor, extract)


def picture_size(shape: list[int | None], otherwise: int) -> tuple[bool, tuple[int, int]] | None:
    """Return whether colours come first in a model's input, and (H, W); None if it is no picture.

    A dimension that may be any is None in `shape`; then `otherwise` is used.
    """
    if len(shape) != 4:
        return None
    first = shape[1] == 3 or shape[3] != 3
    height, width = shape[2:] if first else shape[1:3]
    return first, (height or otherwise, width or otherwise)


def _vector(model: OnnxModel, picture: NDArray[np.float32]) -> NDArray[np.float32]:
    output = model(np.ascontiguousarray(picture[None]))
    if output.ndim < 2 or len(output) != 1 or output.size > _WIDEST:
        raise UserError(f"the model makes {output.shape} of a picture, expected (1, width)")
    return output.reshape(-1)


METHOD = Method(VIDEO, load)
