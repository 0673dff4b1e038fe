"""Recordings that tests make: sound and pictures without a file of ours."""

import wave
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

RATE = 16000

#: Suffix to FFmpeg's codec and the most that its loss may be.
CODECS = {".wav": "pcm_s16le", ".flac": "flac", ".mp3": "libmp3lame"}


def tone(hz: float = 440.0, seconds: float = 1.0, rate: int = RATE) -> NDArray[np.float32]:
    """A sine of amplitude 0.5."""
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate)).astype("f4")


def write_wav(path: Path, sound: NDArray[np.float32], rate: int = RATE, channels: int = 1) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.repeat((sound * 32767).astype("<i2"), channels).tobytes())
    return path


def write_sound(path: Path, sound: NDArray[np.float32], rate: int = RATE) -> Path:
    """Write a file of the format that its suffix says."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(CODECS[path.suffix], rate=rate)
        stream.layout = "mono"
        samples = (sound * 32767).astype("i2")[None]
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_video(path: Path, greys: list[int], fps: int = 10, size: int = 32) -> Path:
    """Write a video whose pictures are each of one grey."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=Fraction(fps), options={"qscale": "1"})
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for grey in greys:
            picture = np.full((size, size, 3), grey, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def write_onnx(path: Path, shape: list[Any], nodes: list[Any], out: list[Any]) -> Path:
    """Write a model of `x` to `y`."""
    graph = helper.make_graph(
        nodes,
        "made",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), str(path))
    return path


def sound_model(path: Path, width: int = 100) -> Path:
    """Make steps of `width` samples each, as they are: (1, samples) to (1, steps, width)."""
    shape = helper.make_node(
        "Constant",
        [],
        ["shape"],
        value=helper.make_tensor("s", TensorProto.INT64, [3], [1, -1, width]),
    )
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    return write_onnx(path, [1, "samples"], [shape, node], [1, "steps", width])


def picture_model(path: Path) -> Path:
    """Take the mean of each colour: (1, 3, H, W) to (1, 3, 1, 1)."""
    node = helper.make_node("GlobalAveragePool", ["x"], ["y"])
    return write_onnx(path, [1, 3, "height", "width"], [node], [1, 3, 1, 1])
