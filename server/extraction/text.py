"""Texts to a vector for each token.

Without a model the vectors are those of wordllama's static embedding (D. L. Miller, 2024), whose
weights its package contains: offline, thousands of texts a second. The mean over tokens is
wordllama's own vector of a text.
"""

import codecs
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from common.config import ExtractConfig
from common.data.extractor import Extractor
from common.errors import UserError
from server.extraction.method import (
    Features,
    Loaded,
    Method,
    Recording,
    checked,
    library,
    model_place,
    sha256_of,
)

#: Bytes of a text.
MOST_BYTES = 1 << 24

#: The files in wordllama's package. Its own loader looks for the second in another folder, and
#: then on the network.
_WEIGHTS = "weights/l2_supercat_256.safetensors"
_TOKENIZER = "tokenizers/l2_supercat_tokenizer_config.json"

#: Suffixes of the files that make a transformer and its tokens.
_OF_A_MODEL = (".json", ".txt", ".model", ".safetensors", ".bin")

#: Tokens that a transformer takes, at most, where it does not say.
_MOST_TOKENS = 512


def text_of(recording: Recording) -> str:
    """Return a text; `UserError` if it is empty, or a file that is not text in UTF-8 or UTF-16."""
    text = recording.source
    if isinstance(text, Path):
        if text.stat().st_size > MOST_BYTES:
            raise UserError(f"is larger than {MOST_BYTES >> 20} MiB")
        content = text.read_bytes()
        wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        try:
            text = content.decode("utf-16" if wide else "utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"is not UTF-8 text: {error.reason} at byte {error.start}") from error
    if not text.strip():
        raise UserError("has no text")
    return text


def load(config: ExtractConfig) -> Loaded:
    """Load wordllama's embedding, or the folder of a model that ``text.model`` names."""
    given = config.text.model
    extractor, vectors = _wordllama() if given is None else _transformer(given)

    def extract(recording: Recording) -> Features:
        features = vectors(text_of(recording))
        if len(features) == 0:
            raise UserError("has no token that the model knows")
        return checked(features)

    return Loaded(extractor, extract)


Vectors = Callable[[str], Features]


def _wordllama() -> tuple[Extractor, Vectors]:
    tokenizers = library("tokenizers", "extracting text")
    spec = find_spec("wordllama")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("extracting text needs wordllama: pip install 'ha-fedformer[extract]'")
    package = Path(spec.submodule_search_locations[0])
    weights, tokens = package / _WEIGHTS, package / _TOKENIZER
    for path in (weights, tokens):
        if not path.is_file():
            raise UserError(f"wordllama has no {path.name}: pip install 'wordllama==0.4.0.post1'")
    from safetensors.numpy import load_file

    table = load_file(weights)["embedding.weight"].astype(np.float32)
    tokenizer = tokenizers.Tokenizer.from_file(str(tokens))
    extractor = Extractor("wordllama", "1", {"sha256": sha256_of([weights, tokens])})

    def vectors(text: str) -> Features:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        rows: Features = table[np.minimum(np.array(ids, dtype=np.int64), len(table) - 1)]
        return rows

    return extractor, vectors


def _transformer(given: str) -> tuple[Extractor, Vectors]:
    folder = transformer_folder(model_place("text.model", given, folder=True))
    transformers = library("transformers", f"text.model={given}", "transformers")
    import torch

    transformers.utils.logging.disable_progress_bar()  # ours is shown
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        model = transformers.AutoModel.from_pretrained(str(folder), local_files_only=True).eval()
    except Exception as error:  # of many kinds
        said = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"text.model={given} cannot be loaded: {said}") from error
    most = min(int(tokenizer.model_max_length), _MOST_TOKENS)
    files = sha256_of(path for path in folder.iterdir() if path.suffix in _OF_A_MODEL)
    extractor = Extractor("transformer", "1", {"sha256": files, "tokens": most})

    def vectors(text: str) -> Features:
        tokens = tokenizer(text, truncation=True, max_length=most, return_tensors="pt")
        with torch.inference_mode():
            output: Any = model(**tokens).last_hidden_state[0].float().numpy()
        features: Features = output
        return features

    return extractor, vectors


def transformer_folder(folder: Path) -> Path:
    """Return the folder of the transformer in one of sentence-transformers, or the same."""
    parts = folder / "modules.json"
    if not parts.is_file():
        return folder
    try:
        modules = json.loads(parts.read_bytes())
        kinds = {str(each["type"]).rpartition(".")[2]: str(each["path"]) for each in modules}
        return folder / kinds["Transformer"]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"text.model={folder}: {parts.name} names no Transformer") from error


METHOD = Method((".txt",), load)
