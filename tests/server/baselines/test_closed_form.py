"""The linear experts alone: what predicts is the closed form, through the fusion of all others."""

import numpy as np
import pytest
import torch
from tiny_runs import tiny

from common.data.batching import pad_all
from common.data.federation import load_federation
from common.errors import UserError
from common.model.ha_fedformer import task_loss
from server.baselines.baseline import Sites, load_sites
from server.baselines.closed_form import ClosedForm


def sites_of(*overrides: str) -> Sites:
    config = tiny("strategy=closed_form", *overrides)
    return load_sites(config, load_federation(config))


def test_outputs_are_those_of_the_experts_and_the_loss_is_theirs() -> None:
    sites = sites_of("dataset.num_items=1200")
    baseline = ClosedForm(sites)
    losses = baseline.train(1)
    for name, keys in sites.by_modality.items():
        held = []
        for key in keys:
            site = sites.by_key[key]
            padded = pad_all(site.sequences.select(site.train))
            with torch.inference_mode():
                outputs = baseline.model.eval()(name, padded)
                assert torch.equal(outputs, baseline.model.linear_outputs(name, padded))
            labels = torch.from_numpy(site.labels[site.train])
            held.append((len(labels), task_loss(outputs, labels, site.task).item()))
        items, means = zip(*held, strict=True)
        assert losses[name] == pytest.approx(np.average(means, weights=items), rel=1e-5)
    assert baseline.scores(sites.data.test)["multimodal"]["corr"] > 0.4


def test_it_needs_experts() -> None:
    with pytest.raises(UserError, match=r"language has none: expected strategy\.linear=true"):
        ClosedForm(sites_of("strategy.linear=false"))
