"""The Flower ClientApp of a site: answer `query`, answer `train`."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.node import (
    Node,
    client_data,
    client_label_sums,
    describe,
    parse_node,
    standardised,
)
from client.objective import Objective, corrected_objective
from client.privacy import protect
from client.trainer import (
    RoundOptions,
    Trained,
    read_moments,
    train,
    validation_outputs,
)
from common.config import Config, Standardisation, config_of_run
from common.data.federation import ClientData, count_outputs
from common.data.moments import FeatureMoments
from common.errors import UserError
from common.messages import Downlink, NodeDescription, Uplink
from common.model.calibration import calibration_sums, label_agreement
from common.model.ha_fedformer import (
    HAFedformer,
    ModelArrays,
    ModelSpec,
    build_model,
    join_arrays,
    set_standardisation,
    split_arrays,
)
from common.posterior import Posterior
from common.protocol import decode_downlink, encode_description, encode_failure, encode_uplink
from common.seeding import derive_seed
from common.structures import decoder_structure, encoder_structure, fit_gaussian
from common.structures.inputs import mapped_gaussian
from common.task import Task
from common.training import choose_device
from common.wire import ProtocolError

#: Models that a process keeps from one message to the next, at most, and those it has.
MOST_MODELS = 8
_models: dict[str, HAFedformer] = {}

GetConfig = Callable[[Context], Config]


def submitted_config(context: Context) -> Config:
    """Return the configuration of a run that `flwr run` submitted."""
    return config_of_run(context.run_config)


def given_config(config: Config, _: Context) -> Config:
    """Return a configuration that is known already, as in a simulation."""
    return config


def _query(get_config: GetConfig, message: Message, context: Context) -> Message:
    try:
        description = describe(parse_node(context.node_config), get_config(context))
    except UserError as error:
        description = NodeDescription((), str(error))
    return Message(encode_description(description), reply_to=message)


def _train(get_config: GetConfig, message: Message, context: Context) -> Message:
    try:
        downlink = decode_downlink(message.content)
        uplink = run_round(downlink, parse_node(context.node_config), get_config(context))
        content = encode_uplink(uplink)
    except (UserError, ProtocolError, FloatingPointError) as error:
        # As a reply of our own, so that every runtime carries the whole reason.
        content = encode_failure(str(error))
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        advice = "too little memory for this round; lower client.batch_size or the model's sizes"
        content = encode_failure(f"{advice}: {str(error) or type(error).__name__}")
    return Message(content, reply_to=message)


def _is_out_of_memory(error: Exception) -> bool:
    """Whether Python, NumPy or torch could not allocate; torch has no error of its own on a CPU."""
    said = ("out of memory", "allocate memory")
    return isinstance(error, MemoryError) or any(words in str(error) for words in said)


def run_round(downlink: Downlink, node: Node, config: Config) -> Uplink:
    """Evaluate the received model, train it, sample its weights.

    Raises
    ------
    UserError
        If the client's data cannot be read.
    ProtocolError
        If the arrays do not fit the configuration or the data.
    """
    torch.set_num_threads(config.client.threads)
    key = downlink.key
    data = client_data(node, key, config)
    model = received_model(downlink, data, config)
    data = standardised(data, downlink.prior)
    held_out = data if downlink.evaluates else replace(data, validation=data.validation[:0])
    outputs = validation_outputs(model, held_out, config.client.batch_size)
    labels = torch.from_numpy(data.labels[held_out.validation])
    seen = calibration_sums(outputs, labels, downlink.prior, data.task)
    sums = client_label_sums(data)
    agrees = label_agreement(outputs, labels, sums, downlink.prior, data.task)
    options = RoundOptions(
        _objective(downlink, data),
        downlink.lr_scale,
        config.strategy.local.proximal,
    )
    seed = derive_seed(config.seed, "train", downlink.round, str(key))
    trained = train(model, data, config.client, config.strategy.sampler, seed, options)
    uplink = Uplink(
        key,
        downlink.round,
        *_fitted(downlink, model, data, trained, config),
        len(data.train),
        trained.loss,
        seen,
        agrees,
        trained.steps,
    )
    return protect(uplink, downlink, config.privacy)


def _objective(downlink: Downlink, data: ClientData) -> Objective:
    if not downlink.corrects_labels:
        return Objective(data.task)
    labels = torch.from_numpy(data.labels[data.train])
    return corrected_objective(labels, downlink.prior, data.task)


def received_model(downlink: Downlink, data: ClientData, config: Config) -> HAFedformer:
    """Build the one-modality model and load the received arrays; `ProtocolError` if unfit."""
    modality = downlink.key.modality
    head = downlink.decoder.get("head.bias")
    if head is None:
        raise ProtocolError("the received decoder has no head.bias")
    _check_outputs(downlink, data, len(head))
    shape = data.sequences.statistics_shape
    linear = (modality,) if "linear.weight" in downlink.encoder else ()
    spec = ModelSpec({modality: shape}, len(head), data.task, config.model, linear=linear)
    model = _model_of(spec)
    arrays = join_arrays(ModelArrays({modality: dict(downlink.encoder)}, dict(downlink.decoder)))
    try:
        model.load_state_dict(arrays)
    except RuntimeError as error:
        raise ProtocolError(
            f"{downlink.key}, with features of shape {shape}, cannot take the received arrays: "
            f"{' '.join(str(error).split())}"
        ) from error
    if config.dataset.standardisation is Standardisation.client:
        set_standardisation(model, modality, FeatureMoments.of(data.sequences.select(data.train)))
    return model.to(choose_device(config.client.device))


def _model_of(spec: ModelSpec) -> HAFedformer:
    """Return the model of this kind that the process keeps; what was received fills it anew."""
    kind = repr(spec)
    if kind not in _models:
        if len(_models) == MOST_MODELS:
            _models.clear()
        _models[kind] = build_model(spec, seed=0)
    return _models[kind]


def _check_outputs(downlink: Downlink, data: ClientData, outputs: int) -> None:
    """Refuse a decoder or a prior for another kind of label than the client's."""
    needs = count_outputs(data.task, data.label_names, data.labels)
    fits = outputs >= needs if data.task is Task.classification else outputs == needs
    expected = {Task.regression: 2, Task.classification: outputs, Task.multilabel: outputs}
    if not fits or len(downlink.prior) != expected[data.task]:
        raise ProtocolError(
            f"{downlink.key} has labels for task={data.task} with {needs} outputs, and the "
            f"received model has {outputs}, with a prior of {len(downlink.prior)} numbers"
        )
    if data.task is Task.regression and not 0 < downlink.prior[1] < math.inf:
        raise ProtocolError(
            f"{downlink.key} received a prior of variance {downlink.prior[1]:g}, expected one "
            "above 0"
        )


def _fitted(
    downlink: Downlink, model: HAFedformer, data: ClientData, trained: Trained, config: Config
) -> tuple[Posterior, Posterior]:
    """Return the posteriors of the encoder and of the decoder."""
    samples, strategy = split_arrays(trained.samples), config.strategy
    modality = downlink.key.modality
    structures = (encoder_structure(strategy.encoder), decoder_structure(strategy.decoder))
    moments = ModelArrays({modality: {}}, {})
    # Less a hair, for products that round to just above a whole number: 0.07 of 100 is 7.
    in_time = downlink.round <= math.ceil(strategy.posterior_rounds * config.rounds - 1e-9)
    if in_time and any(each is not None and each.reads_inputs for each in structures):
        moments = split_arrays(read_moments(model, data, decoder=structures[1] is not None))
    encoder = {
        name: fit_gaussian(
            sample,
            strategy.encoder,
            downlink.encoder[name],
            moments.encoders[modality].get(name),
        )
        for name, sample in samples.encoders[modality].items()
    }
    read = {} if structures[1] is None else moments.decoder
    decoder = {
        name: mapped_gaussian(sample.mean(dim=0), read.get(name), strategy.decoder.shrinkage)
        for name, sample in samples.decoder.items()
    }
    return Posterior.of(encoder), Posterior.of(decoder)


def make_client_app(get_config: GetConfig) -> ClientApp:
    """Build the app; `get_config` returns the configuration of a node's run."""
    app = ClientApp()
    app.query()(partial(_query, get_config))
    app.train()(partial(_train, get_config))
    return app


app = make_client_app(submitted_config)
