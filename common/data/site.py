"""The file of a deployed site, all of which is that site's."""

from dataclasses import replace
from pathlib import Path

from common.clients import ClientKey
from common.config import Config, FileConfig, ShardsConfig
from common.data.federation import ClientData, file_settings, split_client
from common.data.formats.registry import read_source
from common.data.manifest import read_listed_shard
from common.data.shards import Shard
from common.errors import UserError
from common.seal import SUFFIX
from common.task import Task


def site_client_data(path: str | Path, key: ClientKey, config: Config) -> ClientData:
    """Read the file of one deployed site, a shard or another source, all of which is that site's.

    Raises `UserError` if it cannot be read, lacks the modality, or has labels for another task.
    """
    dataset = config.dataset
    if Path(path).suffix == SUFFIX:
        shard = shard_of_site(Path(path), key.modality)
        if dataset.task not in (None, shard.info.task):
            raise UserError(
                f"shard {path} was prepared for task={shard.info.task}, and the run has "
                f"dataset.task={dataset.task}"
            )
        items = shard.items.in_modalities([key.modality]).last_steps(dataset.max_seq_len)
        return split_client(items, shard.info.task, key, config, shard.info.reading)
    if not isinstance(dataset, FileConfig) or isinstance(dataset, ShardsConfig):
        raise UserError(
            f"data={str(path)!r} needs dataset=file, and the run has dataset={dataset.name}; "
            "utmp-prepare makes a shard of it, which any run reads"
        )
    settings = file_settings(dataset, [key.modality])
    source = read_source([Path(path)], "auto", settings)[0]
    reading = replace(settings.reading, extractors=source.extractors)
    return split_client(source.items, dataset.task or Task.regression, key, config, reading)


def shard_of_site(path: Path, modality: str) -> Shard:
    """Read a site's shard; raise `UserError` if that fails, or it lacks the modality."""
    shard = read_listed_shard(path)
    if modality not in shard.items.sequences:
        raise UserError(
            f"shard {path} holds {', '.join(shard.items.sequences)}, and this node is {modality}: "
            f"give it a shard of {modality}, or change modality in --node-config"
        )
    return shard
