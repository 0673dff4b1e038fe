"""Every fault of an update is refused, in words that name the client and the array."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.clients import ClientKey
from common.config import (
    ClientConfig,
    Config,
    DecoderConfig,
    DecoderMerge,
    EncoderConfig,
    EncoderMerge,
    Sampler,
    SamplerConfig,
    Scale,
    ScreeningConfig,
    StrategyConfig,
)
from common.data.moments import FeatureMoments
from common.errors import UserError
from common.messages import ClientDescription, Uplink
from common.model.calibration import agreement_size, calibration_size
from common.model.ha_fedformer import ModelArrays
from common.posterior import Form, Gaussian, Layout, Posterior
from common.structures import fit_gaussian
from common.task import Task
from server.acceptance.validation import RejectedUpdateError, UpdateRules, check_description

KEY = ClientKey("audio", 1)
TRAINED = ModelArrays(
    {
        "audio": {"embed": torch.zeros(3, 2), "norm": torch.zeros(3)},
        "vision": {"embed": torch.zeros(3, 5), "norm": torch.zeros(3)},
    },
    {"head": torch.zeros(1, 3)},
)
#: Of 12 examples: 3 steps an epoch.
CLIENT = ClientConfig(local_epochs=2, batch_size=5)
STEPS = 6


def points(**arrays: Tensor) -> Posterior:
    return Posterior.of({name: Gaussian(array) for name, array in arrays.items()})


def good(task: Task = Task.regression) -> Uplink:
    encoder = Posterior.of(
        {
            "embed": Gaussian(torch.randn(3, 2), torch.tensor([[2.0, 0.5], [0.5, 1.0]]), Form.row),
            "norm": Gaussian(torch.randn(3), torch.tensor([0.1, 1.0, 9.0]), Form.diagonal),
        }
    )
    seen = torch.ones(calibration_size(task), dtype=torch.float64)
    agrees = torch.zeros(agreement_size(task), dtype=torch.float64)
    if task is not Task.regression:
        seen[1:] = -PRIOR[task][0] if task is Task.classification else 2 * math.log(2)
    return Uplink(KEY, 4, encoder, points(head=torch.randn(1, 3)), 12, 0.5, seen, agrees, STEPS)


PLAIN = StrategyConfig(
    "plain",
    sampler=SamplerConfig(Sampler.iasg),
    encoder=EncoderConfig("pbea"),
    decoder=DecoderConfig("cmda"),
)
#: Of two classes; of two labels, each present in half of the items.
PRIOR = {
    Task.regression: torch.tensor([0.0, 1.0], dtype=torch.float64),
    Task.classification: torch.tensor([0.25, 0.75], dtype=torch.float64).log(),
    Task.multilabel: torch.zeros(2, dtype=torch.float64),
}
#: Of 12 items.
LABEL_SUMS = {
    Task.regression: torch.tensor([12.0, 0.0, 12.0], dtype=torch.float64),
    Task.classification: torch.tensor([4.0, 8.0], dtype=torch.float64),
    Task.multilabel: torch.tensor([12.0, 6.0, 3.0], dtype=torch.float64),
}


def check(uplink: Uplink, task: Task = Task.regression, strategy: StrategyConfig = PLAIN) -> None:
    client = ClientDescription(KEY, 12, task, LABEL_SUMS[task], FeatureMoments.empty(2))
    config = Config(client=CLIENT, strategy=strategy)
    UpdateRules(TRAINED, task, config, PRIOR[task]).check(uplink, client, 4)


def encoder_with(name: str, gaussian: Gaussian | None) -> Uplink:
    encoder = dict(good().encoder)
    if gaussian is None:
        del encoder[name]
    else:
        encoder[name] = gaussian
    return replace(good(), encoder=Posterior.of(encoder))


@pytest.mark.parametrize("task", list(Task))
def test_good_update_passes(task: Task) -> None:
    check(good(task), task)


def test_finite_numbers_pass_though_their_sum_is_not() -> None:
    large = points(head=torch.full((1, 3), 3e38))
    assert not large["head"].mean.sum().isfinite()
    check(replace(good(), decoder=large))


def test_update_without_precisions_passes() -> None:
    plain = {name: Gaussian(gaussian.mean) for name, gaussian in good().encoder.items()}
    check(replace(good(), encoder=Posterior.of(plain)))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"key": ClientKey("audio", 2)}, ["audio-1", "audio-2"]),
        ({"round": 5}, ["audio-1", "5", "4"]),
        ({"train_loss": float("inf")}, ["audio-1", "loss", "inf"]),
        ({"calibration_sums": torch.ones(10)}, ["audio-1", "evidence"]),
        (
            {"calibration_sums": torch.tensor([1, 1, 1, 1, 1, float("nan")])},
            ["audio-1", "evidence"],
        ),
        (
            {"calibration_sums": torch.tensor([1, 1e200, 1, 1, 1, 1]).double()},
            ["audio-1", "evidence"],
        ),
        ({"label_agreement": torch.ones(9)}, ["audio-1", "agreement"]),
        *(
            ({"steps": steps}, ["audio-1", f"{steps} local steps, expected {STEPS}"])
            for steps in (0, -3, STEPS - 1, STEPS + 1, 10**9)
        ),
        (
            {"decoder": Posterior(Layout(), torch.zeros(0))},
            ["audio-1 decoder", "'head'", "missing"],
        ),
        (
            {"decoder": points(head=torch.zeros(1, 3), tail=torch.zeros(1))},
            ["audio-1 decoder", "'tail'", "unexpected"],
        ),
        ({"decoder": points(head=torch.zeros(3))}, ["audio-1 decoder", "'head'", "(3,)", "(1, 3)"]),
        ({"decoder": points(head=torch.zeros(1, 1))}, ["'head'", "(1, 1)", "(1, 3)"]),
        ({"decoder": points(head=torch.tensor([[0, float("nan"), 0]]))}, ["'head'", "not finite"]),
        ({"decoder": points(head=torch.tensor([[0, float("inf"), 0]]))}, ["'head'", "not finite"]),
    ],
)
def test_fault_is_refused_and_named(changed: dict[str, object], words: list[str]) -> None:
    with pytest.raises(RejectedUpdateError) as raised:
        check(replace(good(), **changed))
    assert all(word in str(raised.value) for word in words), str(raised.value)


@pytest.mark.parametrize("task", [Task.classification, Task.multilabel])
def test_agreement_has_as_many_finite_numbers_as_its_task_needs(task: Task) -> None:
    size = agreement_size(task)
    for wrong in (torch.ones(0), torch.ones(size - 1), torch.full((size,), float("inf"))):
        with pytest.raises(RejectedUpdateError, match="audio-1 reports agreement"):
            check(replace(good(task), label_agreement=wrong), task)


@pytest.mark.parametrize(
    ("epochs", "batch", "examples", "steps"),
    [(1, 12, 12, 1), (1, 100, 12, 1), (3, 12, 13, 6), (4, 1, 7, 28), (2, 6, 12, 4)],
)
def test_steps_are_those_of_the_configuration(
    epochs: int, batch: int, examples: int, steps: int
) -> None:
    client = ClientConfig(local_epochs=epochs, batch_size=batch)
    task = Task.regression
    rules = UpdateRules(TRAINED, task, Config(client=client, strategy=PLAIN), PRIOR[task])
    described = ClientDescription(
        KEY, examples, Task.regression, torch.ones(3), FeatureMoments.empty(2)
    )
    rules.check(replace(good(), examples=examples, steps=steps), described, 4)
    with pytest.raises(RejectedUpdateError, match=f"{steps + 1} local steps, expected {steps}"):
        rules.check(replace(good(), examples=examples, steps=steps + 1), described, 4)


@pytest.mark.parametrize(
    ("name", "gaussian", "words"),
    [
        ("norm", None, ["'norm'", "missing"]),
        ("surplus", Gaussian(torch.zeros(1)), ["'surplus'", "unexpected"]),
        ("embed", Gaussian(torch.zeros(3, 5)), ["'embed'", "(3, 5)", "(3, 2)"]),
        ("embed", Gaussian(torch.full((3, 2), float("-inf"))), ["'embed'", "not finite"]),
    ],
)
def test_fault_in_the_encoder_is_refused_and_named(
    name: str, gaussian: Gaussian | None, words: list[str]
) -> None:
    with pytest.raises(RejectedUpdateError) as raised:
        check(encoder_with(name, gaussian))
    assert all(word in str(raised.value) for word in ["audio-1 encoder", *words])


def test_posterior_of_the_decoder_is_taken_only_where_it_was_asked_for() -> None:
    head = Gaussian(torch.randn(1, 3), torch.eye(3), Form.row)
    asked = replace(PLAIN, decoder=DecoderConfig(DecoderMerge.posterior))
    check(replace(good(), decoder=Posterior.of({"head": head})), strategy=asked)
    check(good(), strategy=asked)
    with pytest.raises(RejectedUpdateError, match=r"audio-1 decoder array 'head'.*row"):
        check(replace(good(), decoder=Posterior.of({"head": head})))
    bad = replace(head, precision=-torch.eye(3))
    with pytest.raises(RejectedUpdateError, match=r"audio-1 decoder array 'head'.*positive"):
        check(replace(good(), decoder=Posterior.of({"head": bad})), strategy=asked)


INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("precision", "word"),
    [
        ([[1.0, 2.0], [2.0, 1.0]], "positive"),
        ([[0.0, 0.0], [0.0, 0.0]], "positive"),
        ([[-1.0, 0.0], [0.0, -1.0]], "positive"),
        ([[1.0, 1.0], [1.0, 1.0]], "positive"),
        ([[1.0, NAN], [NAN, 1.0]], "finite"),
        ([[INF, 0.0], [0.0, 1.0]], "finite"),
    ],
)
def test_row_precision_must_be_positive_definite(precision: list[list[float]], word: str) -> None:
    gaussian = Gaussian(torch.zeros(3, 2), torch.tensor(precision), Form.row)
    with pytest.raises(RejectedUpdateError, match=f"audio-1 encoder array 'embed'.*{word}"):
        check(encoder_with("embed", gaussian))


@pytest.mark.parametrize(
    ("precision", "word"),
    [
        ([1.0, 0.0, 1.0], "positive"),
        ([1.0, -1e-9, 1.0], "positive"),
        ([1.0, NAN, 1.0], "finite"),
        ([1.0, INF, 1.0], "finite"),
    ],
)
def test_diagonal_precision_must_be_positive(precision: list[float], word: str) -> None:
    gaussian = Gaussian(torch.zeros(3), torch.tensor(precision), Form.diagonal)
    with pytest.raises(RejectedUpdateError, match=f"audio-1 encoder array 'norm'.*{word}"):
        check(encoder_with("norm", gaussian))


@pytest.mark.parametrize(
    ("name", "precision", "form"),
    [
        ("norm", torch.ones(3, dtype=torch.complex64), Form.diagonal),
        ("norm", torch.ones(3, dtype=torch.bool), Form.diagonal),
        ("norm", torch.ones(3, dtype=torch.int64), Form.diagonal),
        ("embed", torch.eye(2, dtype=torch.complex64), Form.row),
    ],
)
def test_precision_must_be_of_real_floating_point_numbers(
    name: str, precision: Tensor, form: Form
) -> None:
    mean = TRAINED.encoders["audio"][name]
    with pytest.raises(RejectedUpdateError, match=f"audio-1 encoder array '{name}'"):
        check(encoder_with(name, Gaussian(mean, precision, form)))


# --- How sure a client can be -----------------------------------------------------------------


def shaped(structure: str, shrinkage: float, scale: Scale) -> StrategyConfig:
    return replace(PLAIN, encoder=EncoderConfig(EncoderMerge.pbea, structure, shrinkage, scale))


def embed_with(*eigenvalues: float) -> Uplink:
    precision = torch.diag(torch.tensor(eigenvalues))
    return replace(
        encoder_with("embed", Gaussian(torch.zeros(3, 2), precision, Form.row)),
        encoder=Posterior.of(
            {
                "embed": Gaussian(torch.zeros(3, 2), precision, Form.row),
                "norm": Gaussian(torch.zeros(3)),
            }
        ),
    )


@pytest.mark.parametrize(
    ("structure", "least"),
    [
        # The smallest eigenvalue is .1 of the mean, and a tenth of that passes.
        ("inputs", 0.01),
        # .1 / (.1 + .9 * 2) of the mean.
        ("row", 0.1 / 1.9 / 10),
    ],
)
def test_a_precision_is_no_flatter_than_its_shrinkage_allows(structure: str, least: float) -> None:
    strategy = shaped(structure, 0.1, Scale.absolute)
    # Of mean 1.
    check(embed_with(2 - 1.01 * least, 1.01 * least), strategy=strategy)
    with pytest.raises(RejectedUpdateError, match="'embed': an eigenvalue of its precision is"):
        check(embed_with(2 - 0.99 * least, 0.99 * least), strategy=strategy)
    # The unit does not matter.
    check(embed_with((2 - 1.01 * least) * 1e6, 1.01 * least * 1e6), strategy=strategy)


def test_a_diagonal_is_no_flatter_than_its_shrinkage_allows() -> None:
    strategy = shaped("diagonal", 0.1, Scale.absolute)
    plain = dict(good().encoder) | {"embed": Gaussian(torch.zeros(3, 2))}
    for small, passes in ((0.0036, True), (0.0034, False)):  # .1 / (.1 + .9 * 3) / 10 of mean 1
        norm = torch.tensor([small, 1.0, 2 - small])
        update = replace(
            good(),
            encoder=Posterior.of(plain | {"norm": Gaussian(torch.zeros(3), norm, Form.diagonal)}),
        )
        if passes:
            check(update, strategy=strategy)
        else:
            with pytest.raises(RejectedUpdateError, match="'norm': an eigenvalue"):
                check(update, strategy=strategy)


@pytest.mark.parametrize(("structure", "most"), [("inputs", 100.0), ("row", 1000.0)])
def test_a_precision_without_a_scale_is_no_larger_than_its_shrinkage_allows(
    structure: str, most: float
) -> None:
    strategy = shaped(structure, 0.1, Scale.relative)
    check(embed_with(0.99 * most, 0.99 * most), strategy=strategy)
    with pytest.raises(RejectedUpdateError, match="'embed': the mean eigenvalue"):
        check(embed_with(1.01 * most, 1.01 * most), strategy=strategy)
    off = replace(strategy, screening=ScreeningConfig(precision_factor=None))
    check(embed_with(1e9, 1e9), strategy=off)
    # With a scale of its own it is compared with the others'.
    check(embed_with(1e9, 1e9), strategy=shaped(structure, 0.1, Scale.absolute))


@settings(max_examples=60, deadline=None)
@given(
    structure=st.sampled_from(["row", "diagonal", "inputs"]),
    shrinkage=st.sampled_from([1e-3, 0.1, 0.5, 1.0]),
    scale=st.sampled_from(list(Scale)),
    spread=st.sampled_from([1e-6, 1e-2, 10.0]),
    rank=st.integers(1, 4),
    seed=st.integers(0, 10**6),
)
def test_what_clients_fit_passes(
    structure: str, shrinkage: float, scale: Scale, spread: float, rank: int, seed: int
) -> None:
    """Samples and moments of any size, in few directions too, where shrinkage is all there is."""
    rng = torch.Generator().manual_seed(seed)
    strategy = shaped(structure, shrinkage, scale)
    read = spread * torch.randn(rank, 2, generator=rng).double()
    moments = read.T @ read / rank
    encoder = {
        name: fit_gaussian(
            spread * torch.randn(rank, *mean.shape, generator=rng),
            strategy.encoder,
            mean,
            moments if name == "embed" else None,
        )
        for name, mean in TRAINED.encoders["audio"].items()
    }
    check(replace(good(), encoder=Posterior.of(encoder)), strategy=strategy)


@pytest.mark.parametrize(
    ("calibration_sums", "words"),
    [
        ([-1, 0, 0, 0, 0, 0], "evidence of -1 items"),
        ([121, 0, 0, 0, 0, 0], "evidence of 121 items, expected at most 120"),
        ([2, 0, 1, 0, 1, 2], "Cauchy-Schwarz"),
    ],
)
def test_impossible_evidence_is_refused(calibration_sums: list[float], words: str) -> None:
    with pytest.raises(RejectedUpdateError, match=f"audio-1 reports .*{words}"):
        check(replace(good(), calibration_sums=torch.tensor(calibration_sums, dtype=torch.float64)))


def test_impossible_agreement_is_refused() -> None:
    task = Task.classification
    with pytest.raises(RejectedUpdateError, match="audio-1 reports an agreement of 1 without"):
        check(replace(good(task), label_agreement=torch.ones(9, dtype=torch.float64)), task)


# --- What a client says of itself ---------------------------------------------------------------


def described(examples: int, *sums: float, task: Task = Task.regression) -> ClientDescription:
    exact = torch.tensor(sums, dtype=torch.float64)
    return ClientDescription(KEY, examples, task, exact, FeatureMoments.empty(2))


def test_a_description_must_be_possible() -> None:
    check_description(described(10, 10, 1, 5), ["audio"])
    check_description(described(10**9, 10**9, 1, 5), ["audio"])
    for bad, words in (
        (described(0, 0, 0, 0), "no examples"),
        (described(10**9 + 1, 10**9 + 1, 0, 0), "says that it has 1000000001 examples"),
        (described(10, 9, 0, 1), "labels of 9 items"),
        (described(10, 10, 10, 5), "expected at least 10"),
        (described(10, task=Task.classification), "label sums"),
        (described(10, 11, -1, task=Task.classification), "negative count"),
    ):
        with pytest.raises(UserError, match=f"client audio-1 .*{words}"):
            check_description(bad, ["audio"])
