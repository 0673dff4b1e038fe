"""A folder of shards as the data of a federation."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from common.clients import ClientKey, clients_per_modality
from common.config import ShardsConfig
from common.data.dataset import MultimodalDataset
from common.data.manifest import MANIFEST, Manifest, read_manifest
from common.data.shards import Shard, read_shard
from common.errors import UserError
from common.seal import SUFFIX
from common.task import Task


@dataclass(frozen=True)
class ShardFolder:
    """Shards that `utmp-prepare` wrote; clients' are read when they are asked for.

    Attributes
    ----------
    path, manifest
        The folder, and what it says of itself.
    clients
        All clients, by modality.
    validation, test
        The server's multimodal items.
    max_seq_len
        At most so many last steps are used; None for all.
    """

    path: Path
    manifest: Manifest
    clients: tuple[ClientKey, ...]
    validation: MultimodalDataset
    test: MultimodalDataset
    max_seq_len: int | None = None

    @property
    def task(self) -> Task:
        """Kind of label."""
        return self.manifest.task

    @property
    def outputs(self) -> int:
        """Numbers that a model of these data predicts."""
        return self.manifest.outputs

    @property
    def label_names(self) -> tuple[str, ...]:
        """What the outputs mean, where that is known."""
        return self.manifest.label_names

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Modality to the shape of its features' statistics."""
        there = (self.test, self.validation)
        shapes = [
            {name: each.statistics_shape for name, each in items.sequences.items()}
            for items in there
        ]
        # A table that no item of one side has shows its steps in the other.
        return {name: max(shape, shapes[1][name]) for name, shape in shapes[0].items()}

    @property
    def cleaning(self) -> dict[str, int]:
        """What was cleaned while preparing, and how many times."""
        return dict(self.manifest.cleaning)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know before trusting a result."""
        return self.manifest.warnings

    def client_items(self, key: ClientKey) -> MultimodalDataset:
        """Read a client's shard."""
        shard = _read(self.path, f"{key}{SUFFIX}", self.manifest)
        items = _in_modalities(shard, [key.modality], self.path)
        return items.last_steps(self.max_seq_len)


def load_shard_folder(dataset: ShardsConfig, clients: Mapping[str, int | None]) -> ShardFolder:
    """Open a folder of shards.

    Parameters
    ----------
    dataset
        Its path, and which modalities are used.
    clients
        ``clients.*``; without a count, every client that has a shard takes part.

    Raises
    ------
    UserError
        If the folder is not whole, or does not hold what is asked for.
    """
    folder = Path(dataset.path)
    manifest = read_manifest(folder)
    if dataset.task not in (None, manifest.task):
        raise UserError(
            f"dataset.task={dataset.task}: {folder} was prepared with task={manifest.task}"
        )
    names = list(dict.fromkeys(dataset.modalities or manifest.modalities))
    unknown = sorted(set(names) - set(manifest.modalities))
    if unknown:
        raise UserError(
            f"dataset.modalities: {folder} has no {unknown[0]!r}; it has "
            f"{', '.join(manifest.modalities)}"
        )
    steps = dataset.max_seq_len
    validation, test = (
        _in_modalities(_read(folder, f"{side}{SUFFIX}", manifest), names, folder).last_steps(steps)
        for side in ("validation", "test")
    )
    keys = _clients(manifest, names, clients, folder)
    return ShardFolder(folder, manifest, keys, validation, test, steps)


def _clients(
    manifest: Manifest, names: list[str], clients: Mapping[str, int | None], folder: Path
) -> tuple[ClientKey, ...]:
    prepared = manifest.clients()
    there = {name: sum(key.modality == name for key in prepared) for name in names}
    # An evaluation folder has no client shards: its clients are sites with files of their own.
    counts = clients_per_modality(clients, names, there if prepared else None)
    for name, count in counts.items():
        if prepared and count > there[name]:
            raise UserError(
                f"clients.{name}={count}: {folder} was prepared for {there[name]}; prepare it "
                f"again with clients.{name}={count}"
            )
    return tuple(ClientKey(name, part) for name in names for part in range(counts[name]))


def _in_modalities(shard: Shard, names: list[str], folder: Path) -> MultimodalDataset:
    for name in names:
        if name not in shard.items.sequences:
            raise UserError(
                f"{folder / MANIFEST} says {name!r}, and shard {shard.info.name} does not hold it; "
                "prepare the data again"
            )
    return shard.items.in_modalities(names)


def _read(folder: Path, name: str, manifest: Manifest) -> Shard:
    path = folder / name
    if name not in manifest.shards:
        raise UserError(f"{folder / MANIFEST} lists no {name}: {folder} was prepared without it")
    if not path.exists():
        raise UserError(f"shard {path} does not exist, but {folder / MANIFEST} lists it")
    shard = read_shard(path)
    manifest.check(path, shard.seal)
    if (shard.info.task, shard.info.outputs) != (manifest.task, manifest.outputs):
        raise UserError(
            f"{folder / MANIFEST} says task {manifest.task} with {manifest.outputs} outputs, and "
            f"{name} says {shard.info.task} with {shard.info.outputs}; prepare the data again"
        )
    return shard


def read_listed_shard(path: Path) -> Shard:
    """Read a site's shard; where a manifest lies beside it, it must be that of the shard.

    Raises
    ------
    UserError
        If it does not exist, is damaged, or is not the one that the manifest lists.
    """
    if not path.exists():
        raise UserError(f"shard {path} does not exist")
    shard = read_shard(path)
    if (path.parent / MANIFEST).exists():
        read_manifest(path.parent).check(path, shard.seal)
    return shard
