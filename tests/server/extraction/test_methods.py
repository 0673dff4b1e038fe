"""Sound, texts and videos to features, by libraries and by models that the test makes."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from data_checks import refusal
from recordings import RATE, picture_model, sound_model, tone, write_sound, write_video, write_wav
from wordllama import WordLlama

from common.config import ExtractConfig, compose
from server.extraction import text
from server.extraction.media import read_pictures, read_sound
from server.extraction.method import Features, Loaded, Recording
from server.extraction.methods import METHODS


def config_of(*given: str) -> ExtractConfig:
    return compose(ExtractConfig, ["source=s", "out=o", *given])


def loaded(*given: str) -> Loaded:
    config = config_of(*given)
    return METHODS[config.kind_of(*config.modalities)].load(config)


def features_of(method: Loaded, source: Path | str) -> Features:
    return method.extract(Recording("a", "a", source))


# Sound -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "error"), [(".wav", 1e-4), (".flac", 1e-4), (".mp3", 0.05)])
def test_sound_is_the_same_in_every_format(tmp_path: Path, suffix: str, error: float) -> None:
    sound = tone(440, 1.0)
    read = read_sound(write_sound(tmp_path / f"a{suffix}", sound), RATE, 1)
    assert read.dtype == np.float32 and len(read) == len(sound)
    np.testing.assert_allclose(read[2000:-2000], sound[2000:-2000], atol=error)


def test_channels_are_mixed_and_rates_are_brought_to_one(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", tone(440, 1.0, 44100), 44100, channels=2)
    read = read_sound(path, RATE, 1)
    assert abs(len(read) - RATE) < 20
    np.testing.assert_allclose(read[2000:10000], tone()[2000:10000], atol=0.01)


def damaged_files(folder: Path) -> dict[str, str]:
    """Files that are no recordings, to what is said of them."""
    whole = write_wav(folder / "whole.wav", tone()).read_bytes()
    flac = write_sound(folder / "whole.flac", tone()).read_bytes()
    contents = {
        "half.wav": whole[: len(whole) // 2],
        "half.flac": flac[: len(flac) // 2],
        "empty.wav": b"",
        "text.wav": b"these are words" * 20,
        "noise.mp3": np.random.default_rng(0).bytes(5000),
        # Lists of other files, on the network too.
        "list.wav": b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
        "list.mp3": f"ffconcat version 1.0\nfile {folder}/whole.wav\n".encode(),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    write_wav(folder / "silent.wav", tone(seconds=0))
    said = dict.fromkeys(contents, "is damaged, or no recording: ")
    return said | {"half.wav": "is cut off: ", "silent.wav": "has no sound"}


def test_a_file_that_is_no_recording_says_why(tmp_path: Path) -> None:
    for name, words in damaged_files(tmp_path).items():
        refusal(lambda name=name: read_sound(tmp_path / name, RATE, 1), words)  # type: ignore[misc]
    refusal(lambda: read_sound(tmp_path / "whole.wav", RATE, 0.01), "is longer than max_minutes=0")
    video = write_video(tmp_path / "a.mp4", [0, 0])
    refusal(lambda: read_sound(video, RATE, 1), "has no sound")
    refusal(lambda: list(read_pictures(tmp_path / "whole.wav", 1, (8, 8), 1)), "has no pictures")


def test_spectra_have_a_step_for_every_part_of_a_second(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", tone(seconds=0.95))
    method = loaded("modality=audio")
    features = features_of(method, path)
    assert features.shape == (5, 53) and features.dtype == np.float32
    # Steps of one frame: the frames themselves, of which a longer step is the mean.
    fine = features_of(loaded("modality=audio", "audio.step=0.01"), path)
    assert fine.shape == (96, 53)
    np.testing.assert_allclose(features[1], fine[20:40].mean(axis=0), rtol=1e-4)
    assert features_of(loaded("modality=audio", "audio.mfcc=0"), path).shape == (5, 40)


def test_an_onnx_model_takes_the_sound_itself(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", tone())
    model = sound_model(tmp_path / "m.onnx")
    given = ("modality=audio", f"audio.model={model}")
    features = features_of(loaded(*given), path)
    np.testing.assert_allclose(features, tone().reshape(160, 100), atol=1e-4)
    even = features_of(loaded(*given, "audio.normalise=true"), path)
    assert (even.mean(), even.std()) == pytest.approx((0, 1), abs=1e-3)
    # 101 samples are no whole steps: the model's own refusal is of that file alone.
    odd = write_wav(tmp_path / "odd.wav", tone()[:101])
    refusal(lambda: features_of(loaded(*given), odd), "the model refuses it: ")


def test_a_model_that_takes_something_else_is_refused(tmp_path: Path) -> None:
    pictures, sounds = picture_model(tmp_path / "p.onnx"), sound_model(tmp_path / "s.onnx")
    (tmp_path / "no.onnx").write_bytes(b"none")
    for given, words in (
        (["modality=audio", f"audio.model={pictures}"], "takes [1, 3, 'height', 'width']; expecte"),
        (["modality=vision", f"video.model={sounds}"], "takes [1, 'samples']; expected float32 of"),
        (["modality=audio", "audio.model=nowhere.onnx"], "nowhere.onnx: expected an ONNX file"),
        (["modality=audio", f"audio.model={tmp_path}/no.onnx"], "is no ONNX model: "),
    ):
        refusal(lambda given=given: loaded(*given), words)  # type: ignore[misc]


# Videos ------------------------------------------------------------------------------------------


def test_a_video_is_a_picture_every_so_often(tmp_path: Path) -> None:
    greys = [20, 40, 60, 80, 100, 120, 140, 160]
    path = write_video(tmp_path / "a.mp4", greys, fps=10)
    model = picture_model(tmp_path / "m.onnx")
    given = ["modality=vision", f"video.model={model}", "video.size=16", "video.every=0.2"]
    features = features_of(loaded(*given, "video.mean=[0,0,0]", "video.std=[1,1,1]"), path)
    assert features.shape == (4, 3)
    np.testing.assert_allclose(features * 255, np.repeat([greys[::2]], 3, 0).T, atol=5)
    scaled = features_of(loaded(*given, "video.mean=[0.1,0.2,0.3]", "video.std=[1,2,4]"), path)
    expected = (features - [0.1, 0.2, 0.3]) / [1, 2, 4]
    np.testing.assert_allclose(scaled, expected, atol=1e-5)


def test_a_video_without_a_model_says_what_it_needs() -> None:
    message = refusal(lambda: loaded("modality=vision"))
    assert message == (
        "video needs a model of pictures: give video.model=MODEL.onnx, which takes float32 of "
        "shape (1, 3, height, width) or (1, height, width, 3), RGB, and returns (1, width)"
    )


def test_a_video_cut_off_is_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [0, 50, 100] * 20)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    refusal(lambda: list(read_pictures(path, 0.5, (8, 8), 1)), "is damaged, or no recording")


# Texts -------------------------------------------------------------------------------------------


def test_the_mean_of_token_vectors_is_wordllamas_own_vector() -> None:
    package = Path(sys.modules["wordllama"].__file__ or "").parent
    own = WordLlama.load(cache_dir=package, disable_download=True)
    method = loaded("modality=language")
    for said in ("I really like this call, thank you!", "Schön war's — très bien 🎉", "no"):
        vectors = features_of(method, said)
        assert vectors.shape[1] == 256 and len(vectors) == len(own.tokenize(said)[0].ids)
        np.testing.assert_allclose(vectors.mean(axis=0), own.embed(said)[0], atol=1e-5)


def test_files_of_text_are_utf_8_or_16_and_not_empty(tmp_path: Path) -> None:
    method, path = loaded("modality=language"), tmp_path / "a.txt"
    plain = features_of(method, "très bien")
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_text("très bien", encoding=encoding)
        np.testing.assert_array_equal(features_of(method, path), plain)
    path.write_text("très bien", encoding="latin-1")
    refusal(lambda: features_of(method, path), "is not UTF-8 text: ", "at byte 2")
    path.write_text(" \n\t")
    refusal(lambda: features_of(method, path), "has no text")
    with path.open("wb") as file:
        file.truncate(text.MOST_BYTES + 1)
    refusal(lambda: features_of(method, path), "is larger than 16 MiB")


class FakeTransformer:
    """As transformers' classes behave: token number and place as vectors."""

    model_max_length = 4

    @classmethod
    def from_pretrained(cls, folder: str, local_files_only: bool) -> Any:
        assert local_files_only
        if not (Path(folder) / "config.json").is_file():
            raise OSError(f"{folder} has no config.json\nand more")
        return cls()

    def eval(self) -> Any:
        return self

    def __call__(self, said: str = "", **given: Any) -> Any:
        if said:
            assert given["truncation"]
            ids = [len(word) for word in said.split()][: given["max_length"]]
            return {"input_ids": torch.tensor([ids])}
        ids = given["input_ids"]
        return SimpleNamespace(last_hidden_state=torch.stack([ids, 2 * ids], dim=2))


def test_the_folder_of_a_transformer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ("modality=language", f"text.model={tmp_path}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    message = refusal(lambda: loaded(*given))
    assert message == f"text.model={tmp_path} needs transformers: pip install transformers"
    quiet = SimpleNamespace(logging=SimpleNamespace(disable_progress_bar=lambda: None))
    classes = {"AutoTokenizer": FakeTransformer, "AutoModel": FakeTransformer, "utils": quiet}
    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(**classes))
    refusal(lambda: loaded(*given), f"text.model={tmp_path} cannot be loaded: {tmp_path} has no")
    (tmp_path / "config.json").write_text("{}")
    first = loaded(*given)
    np.testing.assert_array_equal(features_of(first, "a bb ccc"), [[1, 2], [2, 4], [3, 6]])
    assert len(features_of(first, "a b c d e f")) == 4
    (tmp_path / "config.json").write_text('{"another": 1}')
    assert loaded(*given).extractor.hash != first.extractor.hash
    refusal(lambda: loaded(given[0], "text.model=nowhere"), "text.model=nowhere: expected the fol")


def test_the_transformer_in_a_folder_of_sentence_transformers(tmp_path: Path) -> None:
    assert text.transformer_folder(tmp_path) == tmp_path
    modules = [
        {"type": "sentence_transformers.models.Transformer", "path": "0_Transformer"},
        {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    assert text.transformer_folder(tmp_path) == tmp_path / "0_Transformer"
    (tmp_path / "modules.json").write_text(json.dumps(modules[1:]))
    refusal(lambda: text.transformer_folder(tmp_path), "modules.json names no Transformer")


# Identity ----------------------------------------------------------------------------------------


def test_a_setting_that_changes_features_changes_the_identity_and_no_other_does(
    tmp_path: Path,
) -> None:
    model = sound_model(tmp_path / "m.onnx")
    plain = loaded("modality=audio").extractor
    assert plain.identity == f"log-mel+mfcc 1 ({plain.hash[:12]})"
    for other in ("audio.rate=8000", "audio.step=0.1", "audio.mels=20", "audio.mfcc=0"):
        assert loaded("modality=audio", other).extractor.hash != plain.hash
    for same in ("max_minutes=2", "text.column=x", "overwrite=true", "file_column=x"):
        assert loaded("modality=audio", same).extractor == plain
    of_model = loaded("modality=audio", f"audio.model={model}").extractor
    renamed = sound_model(tmp_path / "renamed.onnx")
    assert loaded("modality=audio", f"audio.model={renamed}").extractor == of_model
    sound_model(renamed, width=50)
    assert loaded("modality=audio", f"audio.model={renamed}").extractor.hash != of_model.hash
    assert replace(plain, hash="") == plain


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "modality is required; give it as modality=audio, "),
        (["modality=[]"], "modality is required; give it as modality=audio, "),
        (
            ["modality=[audio,smell]"],
            "modality=smell: what is it? Give kind=text, kind=audio or kind=vid",
        ),
        (["modality=audio", "audio.hop=0.5"], "audio.hop=0.5: expected at most audio.step=0.2"),
        (["modality=audio", "audio.mfcc=41"], "audio.mfcc=41: expected at most audio.mels=40"),
        (["modality=vision", "video.std=[1,0,1]"], "video.mean and video.std: expected three"),
    ],
)
def test_settings_that_make_no_sense(given: list[str], words: str) -> None:
    refusal(lambda: config_of(*given), words)


@pytest.mark.parametrize("missing", ["av", "tokenizers", "onnxruntime"])
def test_a_missing_library_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    sound, model = write_wav(tmp_path / "a.wav", tone()), sound_model(tmp_path / "m.onnx")
    monkeypatch.setitem(sys.modules, missing, None)
    given = {
        "av": ["modality=audio"],
        "tokenizers": ["modality=language"],
        "onnxruntime": ["modality=audio", f"audio.model={model}"],
    }
    refusal(
        lambda: features_of(loaded(*given[missing]), sound),
        f" needs {missing}: pip install 'ha-fedformer[extract]'",
    )
