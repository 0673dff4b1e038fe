"""The files of arrays beside a table, one for each modality: which they are, and what they hold."""

from collections import Counter
from pathlib import Path

import numpy as np

from common.clients import check_modality_name
from common.data.formats import layouts
from common.data.formats.layouts import Arrays
from common.data.source import ReadSettings, modalities_there
from common.errors import UserError

ARRAYS = (".npy", ".npz", ".safetensors", ".pt", ".pth")

#: Suffixes of arrays as others write them, which are not read.
OTHER_ARRAYS = (".mat", ".h5", ".hdf5", ".pkl", ".pickle", ".feather", ".arrow")


def array_files(path: Path, settings: ReadSettings) -> dict[str, Path]:
    """Return the file of each modality of a table."""
    beside = layouts.files_in(path.parent, *ARRAYS)
    # GAIT.NPY is gait, as old systems write it.
    stems = [file.stem.lower() if file.name.isupper() else file.stem for file in beside]
    counts = Counter(stems)
    files = dict(zip(stems, beside, strict=True)) | {
        name: Path(file) for name, file in settings.arrays.items()
    }
    names = modalities_there(settings, files) or tuple(settings.arrays)
    names = names or tuple(name for name in files if name.lower() not in layouts.NO_MODALITY)
    for name in names:
        if name not in files:
            raise UserError(
                f"{path.parent} has no {name}.npy, .npz, .safetensors or .pt; give its file as "
                f"{settings.prefix}arrays.{name}=…"
            )
        if counts[name] > 1 and name not in settings.arrays:
            raise UserError(
                f"{path.parent} has several files for {name}; name one in {settings.prefix}arrays"
            )
        if settings.arrays.get(name) is None:
            try:
                check_modality_name(name)
            except UserError as error:
                raise UserError(
                    f"{error}; give {files[name].name} another as {settings.prefix}arrays.audio="
                    f"{files[name]}"
                ) from error
        if not files[name].is_file():
            raise UserError(f"{files[name]} ({settings.prefix}arrays.{name}) does not exist")
    if not names:
        raise UserError(
            f"{path} has no modality: expected files like audio.npy, audio.npz or "
            "audio.safetensors beside it"
        )
    chosen = {name: files[name] for name in names}
    others = layouts.files_in(path.parent, *ARRAYS, *OTHER_ARRAYS)
    used = {file.name for file in chosen.values()}
    settings.unused("file", [file.name for file in others if file.name not in used])
    return chosen


def load_arrays(path: Path) -> Arrays:
    """Return a file's arrays by name; none is ever unpickled, and that of ``.npy`` is mapped."""
    suffix = path.suffix.lower()
    if suffix == ".npz":
        arrays = layouts.load_npz(path)
        return Arrays(values=arrays["arr_0"]) if list(arrays) == ["arr_0"] else arrays
    with layouts.reading(path):
        if suffix in (".pt", ".pth"):
            return _load_tensors(path)
        if suffix == ".npy":
            return Arrays(values=np.lib.format.open_memmap(path, mode="r"))
        from safetensors import safe_open

        with safe_open(path, framework="np") as file:
            return Arrays({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118


def _load_tensors(path: Path) -> Arrays:
    """Return a file's tensor, or its dictionary of tensors; nothing else is unpickled."""
    import torch

    content = torch.load(path, map_location="cpu", weights_only=True)
    tensors = {"values": content} if isinstance(content, torch.Tensor) else content
    if not (isinstance(tensors, dict) and all(map(torch.is_tensor, tensors.values()))):
        raise UserError(
            f"{path} holds {type(content).__name__}, expected a tensor or a dictionary of tensors; "
            "if it is no modality, name those that are"
        )
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    layouts.check_unpacked(path, size)
    floats = {
        str(name): tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }
    return Arrays({name: tensor.detach().numpy() for name, tensor in floats.items()})
