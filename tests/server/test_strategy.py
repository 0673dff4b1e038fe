"""A round at the server, over a grid in memory: who gets what, and what becomes of the replies."""

import math
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MessageType
from memory_federation import (
    BAD,
    LABELS,
    NODES,
    PRIOR,
    WIDTHS,
    Federation,
    config_with,
    honest,
    host,
    key,
    update_of,
)
from torch import Tensor
from wire import assert_same

from common.clients import ClientKey
from common.config import ClientWeights, Config
from common.data.moments import FeatureMoments
from common.errors import UserError
from common.model.ha_fedformer import join_arrays, split_arrays
from common.protocol import decode_downlink, decode_uplink, encode_uplink, payload_bytes
from common.seeding import derive_seed
from server.aggregation.client_weights import client_weight
from server.aggregation.hierarchy import RoundSum, merge_round
from server.aggregation.posterior_std import posterior_std
from server.records import RoundRecord

# --- Asking -----------------------------------------------------------------------------------


def test_each_client_gets_its_own_encoder_and_the_decoder_only() -> None:
    federation = Federation(config_with())
    messages = federation.ask(server_round=3)
    parts = split_arrays(federation.arrays)
    asked = []
    for message in messages:
        assert message.metadata.message_type == MessageType.TRAIN
        assert message.metadata.group_id == "3"
        assert set(message.content) == {"about", "tensors"}
        downlink = decode_downlink(message.content)
        asked.append((message.metadata.dst_node_id, str(downlink.key)))
        assert downlink.round == 3
        assert torch.equal(downlink.prior, PRIOR)
        assert_same(dict(downlink.encoder), parts.encoders[downlink.key.modality])
        assert_same(dict(downlink.decoder), parts.decoder)
    assert sorted(asked) == sorted((node, name) for node, names in NODES.items() for name in names)


@pytest.mark.parametrize("weights", list(ClientWeights))
def test_clients_of_well_measured_modalities_evaluate_only_where_they_are_weighed_by_it(
    weights: ClientWeights,
) -> None:
    federation = Federation(config_with(f"strategy.weights={weights}"), well_measured=("audio",))
    asked = [decode_downlink(message.content) for message in federation.ask()]
    by_modality = {downlink.key.modality: downlink.evaluates for downlink in asked}
    assert by_modality == {"audio": weights is ClientWeights.agreement, "vision": True}


def test_a_client_in_units_of_its_own_is_sent_its_own_statistics_and_nobody_else() -> None:
    rows = 5 + 1000 * np.random.default_rng(0).normal(size=(40, WIDTHS["audio"]))
    moments, odd = FeatureMoments.of_rows(rows.astype("f4")), ClientKey("audio", 1)
    federation = Federation(config_with(), units={odd: moments})
    parts = split_arrays(federation.arrays).encoders
    own = {
        "standardise.mean": torch.from_numpy(moments.mean).float(),
        "standardise.scale": torch.from_numpy(1 / moments.std).float(),
    }
    asked = [decode_downlink(message.content) for message in federation.ask()]
    assert odd in [downlink.key for downlink in asked]
    for downlink in asked:
        units = own if downlink.key == odd else {}
        assert_same(dict(downlink.encoder), {**parts[downlink.key.modality], **units})


def test_what_becomes_of_a_model_after_it_was_sent_changes_nothing() -> None:
    federation, other = Federation(config_with()), Federation(config_with())
    asked = federation.ask()
    expected, _ = other.merge(map(honest, other.ask()))
    for array in federation.arrays.values():
        array.zero_()
    assert_same(federation.merge(map(honest, asked))[0], expected)


def asked_of(federation: Federation, server_round: int) -> set[str]:
    return {str(key(message)) for message in federation.ask(server_round)}


def test_node_that_joined_takes_part_in_the_next_round_and_one_that_left_does_not() -> None:
    federation = Federation(config_with())
    assert len(federation.ask(1)) == 5
    del federation.grid.nodes[13]
    federation.grid.nodes[15] = host("vision-7")
    assert asked_of(federation, 2) == {"audio-0", "audio-1", "vision-0", "vision-1", "vision-7"}
    # Nothing is sent for evaluation.
    record = ArrayRecord(federation.arrays)
    assert not federation.strategy.configure_evaluate(1, record, ConfigRecord(), federation.grid)
    assert federation.strategy.aggregate_evaluate(1, []) is None


TEN_AND_THREE = {
    **{100 + part: (f"audio-{part}",) for part in range(10)},
    **{200 + part: (f"vision-{part}",) for part in range(3)},
}


@pytest.mark.parametrize(
    ("fraction", "audio", "vision"), [(1.0, 10, 3), (0.5, 5, 2), (0.3, 3, 1), (0.01, 1, 1)]
)
def test_fraction_of_each_modality_and_never_none(fraction: float, audio: int, vision: int) -> None:
    federation = Federation(config_with(f"strategy.fraction={fraction}"), dict(TEN_AND_THREE))
    modalities = [name.partition("-")[0] for name in asked_of(federation, 1)]
    assert Counter(modalities) == {"audio": audio, "vision": vision}


def test_choice_is_seeded_by_the_round() -> None:
    config = config_with("strategy.fraction=0.3")
    forward = Federation(config, dict(TEN_AND_THREE))
    rounds = {server_round: asked_of(forward, server_round) for server_round in range(1, 13)}
    backward = Federation(config, dict(reversed(TEN_AND_THREE.items())))
    for server_round in reversed(rounds):
        assert asked_of(backward, server_round) == rounds[server_round]
    assert len(set(map(frozenset, rounds.values()))) > 6
    # Everyone has a turn: the chance that one of ten never has in 12 rounds is .14 %.
    assert len(set.union(*rounds.values())) == 13
    other = Federation(config_with("strategy.fraction=0.3", "seed=5"), dict(TEN_AND_THREE))
    assert any(asked_of(other, n) != names for n, names in rounds.items())


def test_halved_weights_are_what_clients_start_from() -> None:
    whole, halved = Federation(config_with()), Federation(config_with("strategy.payload=float16"))
    for message, other in zip(whole.ask(), halved.ask(), strict=True):
        given, rounded = decode_downlink(message.content), decode_downlink(other.content)
        for part in ("encoder", "decoder"):
            for name, array in getattr(given, part).items():
                # Statistics of the features may be of any size.
                exact = array if name.startswith("standardise") else array.half().float()
                assert torch.equal(getattr(rounded, part)[name], exact)
        assert payload_bytes(other.content) < payload_bytes(message.content)
    # The server's own weights stay whole.
    merged, report = halved.merge([])
    assert_same(merged, halved.arrays)
    assert report.clients == {}


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam", "hierarchical"])
def test_changes_smaller_than_the_rounding_add_up(strategy: str) -> None:
    federation = Federation(config_with(f"strategy={strategy}", "strategy.payload=float16"))
    before, size, rounds = dict(federation.arrays), 1e-6, 30

    def moved(message: Message, config: Config) -> Message:
        sent, made = decode_downlink(message.content), update_of(message, config)
        encoder = {k: replace(g, mean=sent.encoder[k]) for k, g in made.encoder.items()}
        decoder = {k: replace(g, mean=sent.decoder[k] + size) for k, g in made.decoder.items()}
        made = replace(made, encoder=encoder, decoder=decoder)
        return Message(encode_uplink(made), reply_to=message)

    for number in range(1, rounds + 1):
        federation.arrays, report = federation.round(number, moved)
        assert report.rejected == ()
    moved_by = federation.arrays["decoder.contract.weight"] - before["decoder.contract.weight"]
    if strategy == "fedadam":
        assert (moved_by > 0).all()
    else:
        expected = torch.full_like(moved_by, rounds * size)
        torch.testing.assert_close(moved_by, expected, rtol=0.02, atol=0)


def test_a_weight_that_cannot_be_halved_is_said() -> None:
    federation = Federation(config_with("strategy.payload=float16"))
    next(iter(split_arrays(federation.arrays).decoder.values())).fill_(7e4)
    with pytest.raises(UserError, match=r"strategy\.payload=float16 cannot hold .* 65504"):
        federation.ask()


# --- Merging ----------------------------------------------------------------------------------


def assert_merged(
    federation: Federation, found: tuple[dict[str, Tensor], RoundRecord], total: RoundSum
) -> None:
    """Compare, to the bit, with what round 2 makes of the sum of its clients in their order."""
    noise = torch.Generator().manual_seed(derive_seed(federation.config.seed, "noise", 2))
    expected = merge_round(total, split_arrays(federation.arrays), noise)
    for name, array in join_arrays(expected.parts).items():
        assert torch.equal(found[0][name], array)
    assert found[1].rejected == () and found[1].decoder_weights == expected.decoder_weights


@pytest.mark.parametrize("strategy", ["paper", "hierarchical", "few_rounds", "fedavg"])
def test_round_is_the_merge_of_its_sum_in_whatever_order_replies_come(strategy: str) -> None:
    losses = []
    for order in [(0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (2, 0, 4, 1, 3)]:
        federation = Federation(config := config_with(f"strategy={strategy}"))
        messages, total = federation.ask(2), RoundSum(config.strategy)
        found = federation.merge([honest(messages[index], config) for index in order], 2)
        for message in sorted(messages, key=key):
            total = total.add(update_of(message, config))
        assert_merged(federation, found, total)
        losses.append(found[1].train_loss)
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize("strategy", ["hierarchical", "fedavg"])
def test_report_counts_weighs_and_tells_clients_apart(strategy: str) -> None:
    federation = Federation(config := config_with(f"strategy={strategy}"))
    messages = sorted(federation.ask(6), key=key)
    kept = {str(each.key): each for each in (update_of(m, config) for m in messages)}
    replies = {name: honest(m, config) for name, m in zip(kept, messages, strict=True)}
    lost = messages[list(kept).index(BAD)]
    del kept[BAD], replies[BAD]
    failure = Message(Error(1, "out of memory"), reply_to=lost)
    _, report = federation.merge([failure, *replies.values()], server_round=6)
    assert (report.round, report.clients) == (6, {"audio": 2, "vision": 2})
    assert report.reused == () and report.rejected == (f"{BAD} (node 12): out of memory",)
    assert report.bytes_down == sum(payload_bytes(each.content) for each in messages) > 0
    assert report.bytes_up == sum(payload_bytes(each.content) for each in replies.values()) > 0
    assert report.client_losses == {name: each.train_loss for name, each in kept.items()}
    for modality, loss in report.train_loss.items():
        own = [each for name, each in kept.items() if name.startswith(modality)]
        weights = [each.examples for each in own]
        assert loss == pytest.approx(np.average([u.train_loss for u in own], weights=weights))
    for shares in report.decoder_weights.values():
        assert sum(shares.values()) == pytest.approx(1)
    stds = {name: posterior_std(each) for name, each in kept.items()}
    assert report.posterior_widths == {name: each for name, each in stds.items() if each}
    # CmDA merges decoders by what they are, so they come without a precision.
    layers = {layer for each in stds.values() for layer in each}
    assert all(layer.startswith("encoder.") for layer in layers)
    assert bool(layers) == (strategy == "hierarchical")


def test_evidence_is_that_of_the_last_round_in_which_the_modality_replied() -> None:
    federation = Federation(config_with())
    assert all(sums.tolist() == [0] * 6 for sums in federation.strategy.calibration_sums.values())
    first = federation.ask(1)
    federation.merge(map(honest, first), 1)
    second = [m for m in federation.ask(2) if key(m).modality == "audio"]
    federation.merge(map(honest, second), 2)
    for modality, messages in (("audio", second), ("vision", first)):
        own = [u for u in map(update_of, messages) if u.key.modality == modality]
        expected = torch.stack([update.calibration_sums for update in own]).sum(dim=0)
        torch.testing.assert_close(federation.strategy.calibration_sums[modality], expected)


# --- Options ----------------------------------------------------------------------------------


WHEN = pytest.mark.parametrize(
    ("when", "skew", "holds"),
    [("never", 0.9, False), ("always", 0.0, True), ("skewed", 0.3, True), ("skewed", 0.2, False)],
)


@WHEN
def test_what_clients_are_to_do_holds_by_the_skew(when: str, skew: float, holds: bool) -> None:
    options = ("local.lr_decay", "local.logit_adjustment")
    overrides = [f"strategy.{option}={when}" for option in options]
    config = config_with("rounds=4", "strategy.skew_threshold=0.2", *overrides)
    federation = Federation(config, labels=replace(LABELS, skew=skew))
    scales = []
    for number in (1, 2, 3, 4):
        downlinks = [decode_downlink(message.content) for message in federation.ask(number)]
        assert len({each.lr_scale for each in downlinks}) == 1
        scales.append(downlinks[0].lr_scale)
        assert all(each.corrects_labels is holds for each in downlinks)
    half = math.sqrt(0.5)
    cosine = [1, (1 + half) / 2, 0.5, (1 - half) / 2]
    assert scales == pytest.approx(cosine if holds else [1] * 4)


@WHEN
def test_momentum_is_kept_from_round_to_round(when: str, skew: float, holds: bool) -> None:
    options = (f"strategy.server_optimizer.when={when}", "strategy.skew_threshold=0.2")
    config, plain = config_with("strategy=fedavgm", *options), config_with("strategy=fedavg")
    federation, momentum = Federation(config, labels=replace(LABELS, skew=skew)), 0.0
    name = "decoder.head.weight"
    for number in (1, 2, 3):
        averaging, before = Federation(plain), federation.arrays
        averaging.arrays = before
        average, _ = averaging.round(number)
        federation.arrays, _ = federation.round(number)
        momentum = 0.6 * momentum + (average[name] - before[name])
        expected = before[name] + 0.7 * momentum if holds else average[name]
        torch.testing.assert_close(federation.arrays[name], expected, rtol=1e-5, atol=1e-6)


def judged(message: Message) -> Message:
    """Reply as a client of a useful model whose labels fit it, or, of the bad one, do not."""
    update = update_of(message)
    sign = -1.0 if str(update.key) == BAD else 1.0
    # 80 items: labels of variance 1, predictions of variance .5 and covariance +-.5 with them.
    y, yy = 80 * PRIOR[0], 80 * (1 + PRIOR[0] ** 2)
    sums = torch.stack([torch.tensor(80.0), y, yy, y, yy - 40, yy - 40 * (2 - sign)])
    return Message(encode_uplink(replace(update, calibration_sums=sums.double())), reply_to=message)


def test_trust_weighs_updates_and_evidence() -> None:
    federation = Federation(config_with("strategy.weights=agreement"))
    messages = federation.ask(2)
    found = federation.merge(map(judged, messages), 2)
    total, seen = RoundSum(federation.config.strategy), torch.zeros(6, dtype=torch.float64)
    for message in sorted(messages, key=key):
        update = decode_uplink(judged(message).content)
        trust = found[1].trust[str(update.key)]
        total = total.add(update, client_weight(update, ClientWeights.agreement, trust), trust)
        if update.key.modality == "audio":
            seen += trust * update.calibration_sums
    assert_merged(federation, found, total)
    torch.testing.assert_close(federation.strategy.calibration_sums["audio"], seen)


@pytest.mark.parametrize(
    "strategy",
    [
        *("fedavg", "fedprox", "fedavgm", "fedadam", "fednova", "fedatt"),
        *("median", "trimmed_mean", "pbea", "cmda", "paper", "hierarchical"),
    ],
)
def test_every_strategy_makes_rounds_in_which_a_modality_is_silent(strategy: str) -> None:
    federation = Federation(config_with(f"strategy={strategy}", "strategy.weights=agreement"))
    for server_round, silent in ((1, "vision"), (2, "audio"), (3, None)):
        asked, before = federation.ask(server_round), federation.arrays
        replies = [honest(m, federation.config) for m in asked if key(m).modality != silent]
        federation.arrays, report = federation.merge(replies, server_round)
        assert report.reused == (() if silent is None else (silent,))
        assert all("no reply" in line for line in report.rejected)
        for name, array in federation.arrays.items():
            kept = "standardise" in name or name.startswith(f"encoders.{silent}.")
            assert torch.equal(array, before[name]) == kept
            assert array.isfinite().all() and array.dtype == before[name].dtype


# --- Bad replies ------------------------------------------------------------------------------


def test_bad_replies_are_all_named_in_a_fixed_order_and_change_nothing() -> None:
    lines = []
    for order in (1, -1):
        federation = Federation(config_with())
        replies = [
            Message(encode_uplink(replace(update_of(m), examples=0)), reply_to=m)
            for m in federation.ask()
        ]
        arrays, report = federation.merge(replies[::order])
        assert_same(arrays, federation.arrays)
        assert report.clients == {} and report.decoder_weights == {}
        assert report.reused == ("audio", "vision")
        lines.append(report.rejected)
    assert lines[0] == lines[1] and len(lines[0]) == 5


def test_busy_node_is_not_asked_and_named_but_all_are_where_all_are_busy() -> None:
    federation = Federation(config_with())
    busy, *others = federation.nodes
    federation.strategy.registry.backlog.add("late", busy, time.time())
    messages = federation.ask()
    assert messages and all(message.metadata.dst_node_id != busy for message in messages)
    _, report = federation.merge(map(honest, messages))
    assert [line.split(":")[0] for line in report.rejected] == sorted(federation.nodes[busy])
    assert all("skipped: still busy" in line for line in report.rejected)
    for node in others:
        federation.strategy.registry.backlog.add(str(node), node, time.time())
    _, report = federation.round(2)
    assert report.clients == {"audio": 3, "vision": 2} and report.rejected == ()
