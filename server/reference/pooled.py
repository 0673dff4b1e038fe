"""The bound `pooled`: all clients' items on one machine, still one modality an item.

One HA-Fedformer and one optimiser, over every encoder and the decoder; batches of one modality
each, those of all modalities mixed. What a federation loses against it is what merging loses.
"""

from functools import partial

from server.reference.batching import one_modality_pass, pooled_items
from server.reference.sites import Sites, from_one_modality
from server.reference.whole import WholeModel


def pooled(sites: Sites) -> WholeModel:
    """Build the bound; features are standardised with the moments of all clients' train items."""
    client = sites.config.client
    model = sites.initial_model({name: sites.moments(name) for name in sites.by_modality})
    items = {
        name: pooled_items([sites.by_key[key] for key in keys])
        for name, keys in sites.by_modality.items()
    }
    one_pass = partial(one_modality_pass, items, client.batch_size, client.num_workers)
    forward = partial(from_one_modality, model)
    return WholeModel(sites, model, forward, one_pass, sites.config.fusion.name)
