"""A client's round on a small federation: what crosses the wire, and what does not."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, MessageType, RecordDict
from wire import assert_same, tensors_of

import client.app
from client.app import given_config, make_client_app, received_model, run_round, submitted_config
from client.node import (
    DeployedNode,
    SimulatedNode,
    client_data,
    client_label_sums,
    describe,
    standardised,
)
from client.objective import corrected_objective
from common.clients import ClientKey
from common.config import Config, compose
from common.data.batching import pad_all
from common.data.federation import load_joint
from common.data.moments import FeatureMoments
from common.messages import Downlink, Uplink
from common.model.calibration import calibration_sums, label_agreement
from common.model.ha_fedformer import (
    HAFedformer,
    ModelArrays,
    ModelSpec,
    build_model,
    join_arrays,
    set_standardisation,
    split_arrays,
    trained_names,
)
from common.model.linear import LinearMap
from common.posterior import Form, Posterior
from common.protocol import (
    ClientFailureError,
    decode_description,
    decode_uplink,
    encode_downlink,
    encode_query,
    encode_uplink,
)
from common.task import Task
from common.wire import ProtocolError

SMALL = (
    *("dataset.num_items=120", "dataset.num_speakers=24", "clients.default=2"),
    *("model.width=10", "model.heads=2", "model.layers=1"),
    *("client.local_epochs=1", "client.device=cpu"),
)
EVERYONE = SimulatedNode(0, 1)
AUDIO = ClientKey("audio", 0)
PRIOR = torch.tensor([0.1, 1.5], dtype=torch.float64)


@cache
def small(*overrides: str) -> Config:
    return compose(Config, [*SMALL, *overrides])


def global_model(config: Config) -> HAFedformer:
    """Build the server's model, with statistics that no buffer starts with."""
    sequences = load_joint(config).items.sequences
    shapes = {name: own.statistics_shape for name, own in sequences.items()}
    # A linear expert of the modality that is trained here, and none of others.
    spec = ModelSpec(shapes, 1, config.dataset.task, config.model, linear=("audio",))
    model = build_model(spec, seed=7)
    for name, own in sequences.items():
        set_standardisation(model, name, FeatureMoments.of(own))
    linear = model.encoder("audio").linear
    weight = 0.1 * torch.randn(linear.weight.shape, generator=torch.Generator().manual_seed(0))
    linear.set(LinearMap(weight, torch.ones(1)))
    return model


def downlink_to(key: ClientKey, config: Config, server_round: int = 1) -> Downlink:
    parts = split_arrays(global_model(config).state_dict())
    return Downlink(key, server_round, parts.encoders[key.modality], parts.decoder, PRIOR)


def audio_round(*overrides: str, server_round: int = 1) -> tuple[Downlink, Uplink]:
    """Train the first audio client for a round."""
    config = small(*overrides)
    downlink = downlink_to(AUDIO, config, server_round)
    return downlink, run_round(downlink, EVERYONE, config)


def test_uplink_holds_the_trained_tensors_of_one_encoder_and_the_decoder() -> None:
    model = global_model(small())
    trained = split_arrays({name: model.state_dict()[name] for name in trained_names(model)})
    _, uplink = audio_round()
    content = encode_uplink(uplink)
    assert set(content) == {"about", "tensors", "metrics"}
    sent = tensors_of(content)
    parts = {name.partition("/")[0] for name in sent}
    assert parts <= {"encoder", "encoder-precision", "decoder", "decoder-precision"}
    for part, expected in (("encoder", trained.encoders["audio"]), ("decoder", trained.decoder)):
        shapes = {f"{part}/{name}": tensor.shape for name, tensor in expected.items()}
        assert {k: t.shape for k, t in sent.items() if k.startswith(f"{part}/")} == shapes
    # No statistics of the site's features, under any name.
    assert not any("standardise" in name or "linear" in name for name in sent)
    precisions = [name.partition("/")[2] for name in sent if name.startswith("encoder-precision/")]
    assert precisions
    for name in precisions:
        form, _, tensor = name.partition(":")
        assert form in (Form.row, Form.diagonal) and tensor in trained.encoders["audio"]
    assert set(content.config_records["about"]) == {"modality", "part", "round"}
    assert set(content.metric_records["metrics"]) == {
        *("examples", "train-loss", "evidence", "agreement", "steps")
    }
    assert (len(uplink.calibration_sums), len(uplink.label_agreement)) == (6, 0)


def test_round_trains_and_reports_the_client_s_own_numbers() -> None:
    downlink, uplink = audio_round(server_round=3)
    examples = len(client_data(EVERYONE, AUDIO, small()).train)
    assert (uplink.key, uplink.round, uplink.examples) == (AUDIO, 3, examples)
    assert 0 < uplink.train_loss < 10
    moved = uplink.encoder["embed.weight"].mean - downlink.encoder["embed.weight"]
    assert 0 < moved.abs().max() < 0.1
    assert not torch.equal(uplink.decoder["head.weight"].mean, downlink.decoder["head.weight"])


def test_evidence_and_agreement_are_of_the_model_as_received() -> None:
    config = small("client.lr=0.5")
    downlink, uplink = audio_round("client.lr=0.5")
    data, model = client_data(EVERYONE, AUDIO, config), global_model(config).eval()
    with torch.inference_mode():
        outputs = model("audio", pad_all(data.sequences.select(data.validation)))
    labels = torch.from_numpy((data.labels[data.validation] - 0.1) / np.sqrt(1.5))
    assert len(labels) > 0
    expected = calibration_sums(outputs, labels, downlink.prior, Task.regression)
    torch.testing.assert_close(uplink.calibration_sums, expected, rtol=1e-4, atol=1e-5)
    sums = client_label_sums(data)
    expected = label_agreement(outputs, labels, sums, downlink.prior, Task.regression)
    torch.testing.assert_close(uplink.label_agreement, expected, rtol=1e-4, atol=1e-5)


def test_client_without_validation_items_reports_no_evidence() -> None:
    _, uplink = audio_round("client.validation_fraction=0")
    assert uplink.calibration_sums.tolist() == [0.0] * 6
    assert uplink.label_agreement.tolist() == []


def test_a_client_whose_evidence_is_not_used_sends_none_and_trains_the_same() -> None:
    downlink, uplink = audio_round()
    silent = run_round(replace(downlink, evaluates=False), EVERYONE, small())
    assert uplink.calibration_sums[0] > 0
    assert silent.calibration_sums.tolist() == [0.0] * 6
    assert_same(replace(silent, calibration_sums=uplink.calibration_sums), uplink)


def test_a_process_keeps_a_few_models_and_nothing_of_what_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client.app, "MOST_MODELS", 2)
    client.app._models.clear()
    downlink, first = audio_round()
    (kept,) = client.app._models.values()
    for parameter in kept.parameters():
        parameter.data.fill_(float("nan"))
    assert_same(run_round(downlink, EVERYONE, small()), first)
    assert list(client.app._models.values()) == [kept]
    for width in (20, 30):
        audio_round(f"model.width={width}", "model.heads=2")
    assert len(client.app._models) <= 2
    assert_same(run_round(downlink, EVERYONE, small()), first)


def test_round_does_not_depend_on_what_ran_before_nor_on_its_node() -> None:
    downlink, first = audio_round()
    before = deepcopy(dict(downlink.encoder))
    assert_same(run_round(downlink, EVERYONE, small()), first)
    other = run_round(downlink_to(ClientKey("vision", 1), small()), EVERYONE, small())
    torch.manual_seed(0)
    np.random.seed(3)  # noqa: NPY002
    for node in (EVERYONE, SimulatedNode(2, 5)):
        assert_same(run_round(downlink, node, small()), first)
    assert other.train_loss != first.train_loss
    assert_same(downlink.encoder, before)


def test_what_is_trained_is_the_remainder_of_the_linear_expert() -> None:
    config, downlink = small(), downlink_to(AUDIO, small())
    data = client_data(EVERYONE, AUDIO, config)
    model = received_model(downlink, data, config).eval()
    padded = pad_all(data.sequences)
    with torch.inference_mode():
        linear = model.linear_outputs("audio", padded)
        network = model.decoder(model.encode("audio", padded), padded.lengths)
        torch.testing.assert_close(model("audio", padded), network + linear)
    pooled = torch.stack([x[:n].mean(0) for x, n in zip(*padded, strict=True)])
    standardise = model.encoder("audio").standardise
    expected = (pooled - standardise.mean) * standardise.scale @ downlink.encoder["linear.weight"]
    torch.testing.assert_close(linear, expected + 1, rtol=1e-4, atol=1e-4)
    # A modality without one has a downlink without one.
    other = downlink_to(ClientKey("vision", 0), config)
    data = client_data(EVERYONE, other.key, config)
    assert received_model(other, data, config).spec.linear == ()


def test_a_correction_for_skewed_labels_changes_the_loss_and_nothing_else() -> None:
    config = small("strategy=fedavg", "client.optimizer=sgd", "client.lr=1e-9")
    downlink, data = downlink_to(AUDIO, config), client_data(EVERYONE, AUDIO, config)
    downlink = replace(downlink, prior=torch.tensor([0.7, 3.0], dtype=torch.float64))
    plain, corrected = (
        run_round(replace(downlink, corrects_labels=each), EVERYONE, config)
        for each in (False, True)
    )
    assert corrected.train_loss != pytest.approx(plain.train_loss, rel=0.01)
    assert torch.equal(corrected.calibration_sums, plain.calibration_sums)
    assert torch.equal(corrected.label_agreement, plain.label_agreement)
    # Nothing moves at such a rate, but for dropout; so the losses are near those of one model.
    model = received_model(downlink, data, config).eval()
    outputs = model("audio", pad_all(data.sequences.select(data.train))).detach()
    data = standardised(data, downlink.prior)
    labels = torch.from_numpy(data.labels[data.train])
    objective = corrected_objective(labels, downlink.prior, data.task)
    assert corrected.train_loss == pytest.approx(objective(outputs, labels).item(), rel=0.1)


def with_precision(posterior: Posterior) -> set[str]:
    return {name for name, gaussian in posterior.items() if gaussian.form is Form.row}


@pytest.mark.parametrize(
    ("share", "rounds", "last"),
    [(0.3, 4, 2), (1.0, 2, 2), (0.0, 3, 0), (0.07, 100, 7)],
)
def test_maps_are_measured_in_early_rounds_alone(share: float, rounds: int, last: int) -> None:
    # ceil(share * rounds) of them.
    settings = [f"strategy.posterior_rounds={share}", f"rounds={rounds}", "client.batch_size=100"]
    for server_round in {last, last + 1, rounds} - {0, rounds + 1}:
        downlink, uplink = audio_round("strategy=few_rounds", *settings, server_round=server_round)
        for part in ("encoder", "decoder"):
            arrays = getattr(downlink, part).items()
            maps = {name for name, array in arrays if array.ndim > 1 and "linear" not in name}
            measured = with_precision(getattr(uplink, part))
            assert measured == (maps if server_round <= last else set())


@pytest.mark.parametrize(
    ("encoder", "decoder"),
    [("average", "posterior"), ("pbea", "average"), ("average", "average")],
)
def test_only_the_part_that_is_merged_by_its_posterior_sends_one(
    encoder: str, decoder: str
) -> None:
    merges = [f"strategy.encoder.merge={encoder}", f"strategy.decoder.merge={decoder}"]
    _, uplink = audio_round("strategy=few_rounds", *merges)
    assert bool(with_precision(uplink.encoder)) == (encoder == "pbea")
    assert bool(with_precision(uplink.decoder)) == (decoder == "posterior")


def test_moments_are_of_the_trained_model_on_the_train_items() -> None:
    settings = ("strategy=few_rounds", "client.lr=0.05")
    config, (downlink, uplink) = small(*settings), audio_round(*settings)
    data = client_data(EVERYONE, AUDIO, config)
    model = received_model(downlink, data, config).eval()
    encoder, decoder = (
        {name: gaussian.mean for name, gaussian in part.items()}
        for part in (uplink.encoder, uplink.decoder)
    )
    model.load_state_dict(join_arrays(ModelArrays({"audio": encoder}, decoder)), strict=False)
    padded, read = pad_all(data.sequences.select(data.train)), []
    hook = model.decoder.head.register_forward_hook(lambda _, given, __: read.append(given[0]))
    with hook, torch.inference_mode():
        model("audio", padded)
    moments = read[0].double().T @ read[0].double() / len(data.train)
    rho = config.strategy.decoder.shrinkage
    expected = (1 - rho) * moments + rho * moments.diagonal().mean() * torch.eye(10)
    found = uplink.decoder["head.weight"].precision
    assert found is not None
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-3, atol=1e-6)


def test_client_standardisation_replaces_the_buffers_here_only() -> None:
    config = small("dataset.standardisation=client")
    data, downlink = client_data(EVERYONE, AUDIO, config), downlink_to(AUDIO, config)
    sent = deepcopy(dict(downlink.encoder))
    standardise = received_model(downlink, data, config).encoders["audio"].standardise
    rows = np.concatenate([data.sequences[item] for item in data.train]).astype(np.float64)
    np.testing.assert_allclose(standardise.mean, rows.mean(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(standardise.scale, 1 / rows.std(axis=0), rtol=1e-4)
    uplink = run_round(downlink, EVERYONE, config)
    assert not any("standardise" in name for name in uplink.encoder)
    assert_same(downlink.encoder, sent)
    assert run_round(downlink, EVERYONE, small()).train_loss != uplink.train_loss


@pytest.mark.parametrize(
    ("part", "name", "shape"),
    [
        ("encoder", "embed.weight", (10, 11, 1)),
        ("encoder", "standardise.mean", (13,)),
        ("encoder", "linear.weight", (11, 1)),
        ("encoder", "linear.bias", None),
        ("decoder", "expand.weight", (10,)),
        ("encoder", "norm.bias", None),
        ("encoder", "surplus", (2,)),
        ("decoder", "head.bias", None),
    ],
)
def test_what_does_not_fit_is_refused_and_named(
    part: str, name: str, shape: tuple[int, ...] | None
) -> None:
    good = downlink_to(AUDIO, small())
    arrays = {**getattr(good, part), name: torch.zeros(shape or ())}
    if shape is None:
        del arrays[name]
    with pytest.raises(ProtocolError) as raised:
        run_round(replace(good, **{part: arrays}), EVERYONE, small())
    assert name in str(raised.value) and "\n" not in str(raised.value)
    assert shape is None or name == "surplus" or str(list(shape)) in str(raised.value)
    for variance in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ProtocolError, match=f"prior of variance {variance:g}, expected one"):
            run_round(replace(good, prior=torch.tensor([0.1, variance])), EVERYONE, small())


def answer(kind: str, content: RecordDict, config: Config, **node: int | str) -> Message:
    """Let the app answer a message of Flower's."""
    named = {name.replace("_", "-"): value for name, value in node.items()}
    app = make_client_app(partial(given_config, config))
    return app(Message(content, 5, kind, group_id="2"), Context(1, 5, named, RecordDict(), {}))


@pytest.mark.usefixtures("in_a_task")
def test_flower_query_is_answered_with_the_description() -> None:
    reply = answer(MessageType.QUERY, encode_query(), small(), partition_id=1, num_partitions=2)
    assert reply.metadata.src_node_id == 5
    assert_same(decode_description(reply.content), describe(SimulatedNode(1, 2), small()))


@pytest.mark.usefixtures("in_a_task")
def test_flower_train_is_a_round() -> None:
    key = ClientKey("vision", 0)
    downlink = downlink_to(key, small(), server_round=2)
    content = encode_downlink(downlink)
    reply = answer(MessageType.TRAIN, content, small(), modality="vision", part=0)
    assert reply.metadata.group_id == "2"
    expected = run_round(downlink, DeployedNode(key, None), small())
    assert_same(decode_uplink(reply.content), expected)


def allocate() -> None:
    torch.empty(1 << 46)  # 2^48 bytes, more than can be addressed


def fail(error: Exception) -> None:
    raise error


@pytest.mark.usefixtures("in_a_task")
@pytest.mark.parametrize(
    ("failing", "cause"),
    [
        (allocate, "you tried to allocate 281474976710656 bytes"),
        (partial(np.empty, 1 << 50), "Unable to allocate 8.00 PiB"),
        (partial(fail, MemoryError()), "MemoryError"),
        (partial(fail, torch.OutOfMemoryError("CUDA out of memory. Tried\nto")), "Tried to"),
    ],
)
def test_a_client_without_enough_memory_says_so_in_a_line(
    monkeypatch: pytest.MonkeyPatch, failing: Callable[[], object], cause: str
) -> None:
    monkeypatch.setattr(client.app, "train", lambda *_: failing())
    content = encode_downlink(downlink_to(AUDIO, small()))
    reply = answer(MessageType.TRAIN, content, small(), modality="audio", part=0)
    with pytest.raises(ClientFailureError) as raised:
        decode_uplink(reply.content)
    line = str(raised.value)
    assert line.startswith("too little memory for this round; lower client.batch_size or")
    assert cause in line and "\n" not in line


@pytest.mark.usefixtures("in_a_task")
def test_a_fault_of_the_program_is_not_taken_for_a_lack_of_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client.app, "train", lambda *_: fail(RuntimeError("shapes differ")))
    content = encode_downlink(downlink_to(AUDIO, small()))
    with pytest.raises(RuntimeError, match="shapes differ"):
        answer(MessageType.TRAIN, content, small(), modality="audio", part=0)


def test_configuration_comes_from_the_run() -> None:
    run = {"config-name": "config", "overrides": "rounds=3 clients.audio=4  'run_dir=my runs'"}
    config = submitted_config(Context(1, 5, {}, RecordDict(), run))
    assert (config.rounds, config.clients["audio"], config.run_dir) == (3, 4, "my runs")
