"""Every fault of an update is refused, in words that name the client and the array.

Faults that a whole round refuses are in `test_hostile`; here are those of single numbers.
"""

import math
from dataclasses import replace

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_federation import Federation, config_with, key, update_of
from torch import Tensor
from updates import key_of, points, uplink

from common.data.moments import FeatureMoments
from common.messages import ClientDescription, Uplink
from common.model.calibration import agreement_size, calibration_size
from common.model.ha_fedformer import ModelArrays
from common.posterior import Form, Gaussian, Posterior
from common.protocol import encode_uplink, payload_bytes
from common.structures import MOST_INPUTS, fit_gaussian
from common.task import Task
from server.acceptance.validation import SLACK, RejectedUpdateError, UpdateRules

TRAINED = ModelArrays(
    {
        "audio": {"embed": torch.zeros(3, 2), "norm": torch.zeros(3)},
        "vision": {"embed": torch.zeros(3, 5), "norm": torch.zeros(3)},
    },
    {"head": torch.zeros(1, 3)},
)
PLAIN = ("strategy=paper", "client.local_epochs=2", "client.batch_size=5")
ASKED = (*PLAIN, "strategy.decoder.merge=posterior")
#: Of two classes; of two labels, each present in half of the items.
PRIOR = {
    Task.regression: torch.tensor([0.0, 1.0]).double(),
    Task.classification: torch.tensor([0.25, 0.75]).double().log(),
    Task.multilabel: torch.zeros(2).double(),
}
#: Of 12 items.
LABEL_SUMS = {
    Task.regression: torch.tensor([12, 0, 12]).double(),
    Task.classification: torch.tensor([4, 8]).double(),
    Task.multilabel: torch.tensor([12, 6, 3]).double(),
}
INF, NAN = float("inf"), float("nan")


def good(task: Task = Task.regression, **encoder: Gaussian) -> Uplink:
    """Make an update of 12 examples that passes, of 2 epochs of 3 steps."""
    fitted = {
        "embed": Gaussian(torch.randn(3, 2), torch.tensor([[2.0, 0.5], [0.5, 1.0]]), Form.row),
        "norm": Gaussian(torch.randn(3), torch.tensor([0.1, 1.0, 9.0]), Form.diagonal),
    }
    seen = torch.ones(calibration_size(task), dtype=torch.float64)
    agrees = torch.zeros(agreement_size(task), dtype=torch.float64)
    if task is not Task.regression:
        seen[1:] = -PRIOR[task][0] if task is Task.classification else 2 * math.log(2)
    sums = {"calibration_sums": seen, "label_agreement": agrees}
    parts = {"encoder": fitted | encoder, "decoder": {"head": torch.randn(1, 3)}}
    return uplink("audio-1", round=4, steps=6, **parts, **sums)


def check(
    update: Uplink,
    *overrides: str,
    task: Task = Task.regression,
    examples: int = 12,
    trained: ModelArrays = TRAINED,
) -> None:
    moments, sums = FeatureMoments.empty(2), LABEL_SUMS[task]
    described = ClientDescription(key_of("audio-1"), examples, task, sums, moments)
    rules = UpdateRules(trained, task, config_with(*PLAIN, *overrides), PRIOR[task])
    rules.check(update, described, 4)


@pytest.mark.parametrize("task", list(Task))
def test_good_update_passes(task: Task) -> None:
    check(good(task), task=task)
    # With or without precisions, of the decoder too where they are asked for.
    plain = {name: Gaussian(each.mean) for name, each in good().encoder.items()}
    check(good(task, **plain), task=task)
    check(good(task), *ASKED, task=task)


def test_finite_numbers_pass_though_their_sum_is_not() -> None:
    large = points(head=torch.full((1, 3), 3e38))
    assert not large["head"].mean.sum().isfinite()
    check(replace(good(), decoder=large))


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


#: What no loss in float32 can be.
LOSSES = [1e308, -1e308, 3.5e38, NAN, float("inf")]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"calibration_sums": torch.ones(10)}, ["audio-1", "evidence"]),
        ({"calibration_sums": numbers(1, 1, 1, 1, 1, NAN)}, ["audio-1", "evidence"]),
        ({"calibration_sums": numbers(1, 1e200, 1, 1, 1, 1)}, ["audio-1", "evidence"]),
        ({"calibration_sums": numbers(121, 0, 0, 0, 0, 0)}, ["121 items", "at most 120"]),
        ({"label_agreement": torch.ones(9)}, ["audio-1", "agreement"]),
        *(({"train_loss": loss}, ["audio-1", f"a train loss of {loss}"]) for loss in LOSSES),
        *(({"steps": n}, ["audio-1", f"{n} local steps, expected 6"]) for n in (0, 7)),
    ],
)
def test_fault_is_refused_and_named(changed: dict[str, object], words: list[str]) -> None:
    with pytest.raises(RejectedUpdateError) as raised:
        check(replace(good(), **changed))
    assert all(word in str(raised.value) for word in words), str(raised.value)


@pytest.mark.parametrize("task", [Task.classification, Task.multilabel])
def test_agreement_has_as_many_finite_numbers_as_its_task_needs(task: Task) -> None:
    ones = torch.ones(agreement_size(task), dtype=torch.float64)
    without = "audio-1 reports an agreement of 1 without"
    for wrong, words in ((ones[1:], "agreement"), (INF * ones, "agreement"), (ones, without)):
        with pytest.raises(RejectedUpdateError, match=words):
            check(replace(good(task), label_agreement=wrong), task=task)


def test_steps_are_those_of_the_configuration() -> None:
    for epochs, batch, examples, steps in ((1, 100, 12, 1), (3, 12, 13, 6), (4, 1, 7, 28)):
        overrides = (f"client.local_epochs={epochs}", f"client.batch_size={batch}")
        update = replace(good(), examples=examples, steps=steps)
        check(update, *overrides, examples=examples)
        with pytest.raises(RejectedUpdateError, match=f"{steps + 1} local steps, expected {steps}"):
            check(replace(update, steps=steps + 1), *overrides, examples=examples)


def test_posterior_of_the_decoder_is_taken_only_where_it_was_asked_for() -> None:
    head = Gaussian(torch.randn(1, 3), torch.eye(3), Form.row)
    sure = replace(good(), decoder=Posterior.of({"head": head}))
    check(sure, *ASKED)
    with pytest.raises(RejectedUpdateError, match=r"audio-1 decoder array 'head'.*row"):
        check(sure)


# --- Precisions -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "word"),
    [
        ([[1.0, 2.0], [2.0, 1.0]], "positive"),
        ([[0.0, 0.0], [0.0, 0.0]], "positive"),
        ([[1.0, 1.0], [1.0, 1.0]], "positive"),
        ([[INF, 0.0], [0.0, 1.0]], "finite"),
        ([1.0, 0.0, 1.0], "positive"),
        ([1.0, -1e-9, 1.0], "positive"),
        ([1.0, NAN, 1.0], "finite"),
        *((torch.ones(3, dtype=getattr(torch, t)), t) for t in ("complex64", "bool", "int64")),
        (torch.eye(2, dtype=torch.complex64), "complex64"),
    ],
)
def test_precision_is_positive_definite_and_real(
    precision: list[float] | Tensor, word: str
) -> None:
    precision = torch.as_tensor(precision)
    name, form = ("embed", Form.row) if precision.ndim == 2 else ("norm", Form.diagonal)
    changed = Gaussian(TRAINED.encoders["audio"][name], precision, form)
    with pytest.raises(RejectedUpdateError, match=f"audio-1 encoder array '{name}'.*{word}"):
        check(good(**{name: changed}))


@pytest.mark.parametrize("structure", ["row", "inputs"])
def test_rows_of_a_wide_map_have_no_precision(structure: str) -> None:
    width = MOST_INPUTS + 1
    arrays = {"embed": torch.zeros(3, width), "norm": torch.zeros(3)}
    trained = ModelArrays({"audio": arrays}, TRAINED.decoder)
    for form, precision in (
        (Form.identity, None),
        (Form.row, torch.eye(width)),
        (Form.diagonal, torch.ones(3, width)),
    ):
        embed, norm = Gaussian(arrays["embed"], precision, form), Gaussian(arrays["norm"])
        update = good(embed=embed, norm=norm)
        if form is Form.identity:
            check(update, *shaped(structure, 0.1, "absolute"), trained=trained)
            continue
        words = f"audio-1 encoder array 'embed': its precision is {form}"
        with pytest.raises(RejectedUpdateError, match=words):
            check(update, *shaped(structure, 0.1, "absolute"), trained=trained)


def shaped(structure: str, shrinkage: float, scale: str) -> list[str]:
    options = {"structure": structure, "shrinkage": shrinkage, "scale": scale}
    return [f"strategy.encoder.{name}={value}" for name, value in options.items()]


def sure(*eigenvalues: float) -> Uplink:
    """Make an update with a row precision of two eigenvalues, or a diagonal one of three."""
    values = torch.tensor(eigenvalues)
    plain = {"embed": Gaussian(torch.zeros(3, 2)), "norm": Gaussian(torch.zeros(3))}
    if len(values) == 3:
        return good(**plain | {"norm": Gaussian(torch.zeros(3), values, Form.diagonal)})
    return good(**plain | {"embed": Gaussian(torch.zeros(3, 2), torch.diag(values), Form.row)})


@pytest.mark.parametrize(
    ("structure", "least", "others"),
    [
        # The smallest eigenvalue is .1 of the mean, and a tenth of that passes.
        ("inputs", 0.01, ()),
        # .1 / (.1 + .9 * 2) of the mean, and of three numbers.
        ("row", 0.1 / 1.9 / 10, ()),
        ("diagonal", 0.1 / 2.8 / 10, (1.0,)),
    ],
)
def test_flatness_of_precisions(structure: str, least: float, others: tuple[float, ...]) -> None:
    overrides = shaped(structure, 0.1, "absolute")
    for unit in (1.0, 1e6):
        passes, fails = (  # of mean 1
            sure(*(unit * value for value in (2 - small, small, *others)))
            for small in (1.01 * least, 0.99 * least)
        )
        check(passes, *overrides)
        with pytest.raises(RejectedUpdateError, match="an eigenvalue of its precision is"):
            check(fails, *overrides)


@pytest.mark.parametrize(("structure", "most"), [("inputs", 100.0), ("row", 1000.0)])
def test_precision_without_scale_is_bounded_by_its_shrinkage(structure: str, most: float) -> None:
    overrides = shaped(structure, 0.1, "relative")
    check(sure(0.99 * most, 0.99 * most), *overrides)
    with pytest.raises(RejectedUpdateError, match="'embed': the mean eigenvalue"):
        check(sure(1.01 * most, 1.01 * most), *overrides)
    off = (*overrides, "strategy.screening.precision_factor=null")
    # With a scale of its own it is compared with the others'.
    for unbounded in (off, shaped(structure, 0.1, "absolute")):
        check(sure(1e9, 1e9), *unbounded)


@settings(max_examples=60, deadline=None)
@given(
    structure=st.sampled_from(["row", "diagonal", "inputs"]),
    shrinkage=st.sampled_from([1e-3, 0.1, 0.5, 1.0]),
    scale=st.sampled_from(["relative", "absolute"]),
    spread=st.sampled_from([1e-6, 1e-2, 10.0]),
    rank=st.integers(1, 4),
    seed=st.integers(0, 10**6),
)
def test_what_clients_fit_passes(
    structure: str, shrinkage: float, scale: str, spread: float, rank: int, seed: int
) -> None:
    """Samples and moments of any size, in few directions too, where shrinkage is all there is."""
    rng = torch.Generator().manual_seed(seed)
    overrides = shaped(structure, shrinkage, scale)
    read = spread * torch.randn(rank, 2, generator=rng).double()
    encoder = {
        name: fit_gaussian(
            spread * torch.randn(rank, *mean.shape, generator=rng),
            config_with(*PLAIN, *overrides).strategy.encoder,
            mean,
            read.T @ read / rank if name == "embed" else None,
        )
        for name, mean in TRAINED.encoders["audio"].items()
    }
    check(good(**encoder), *overrides)


# --- Size -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "strategy",
    [
        *("hierarchical", "few_rounds", "paper", "fedavg"),
        *("pbea strategy.encoder.structure=diagonal", "pbea strategy.encoder.structure=low_rank"),
    ],
)
def test_limit_is_the_size_of_the_largest_update(strategy: str) -> None:
    run = Federation(config_with(*f"strategy={strategy}".split()))
    rules = run.strategy._filter.rules
    for message in run.ask():
        content, modality = encode_uplink(update_of(message, run.config)), key(message).modality
        assert payload_bytes(content) == rules.limits[modality]
        rules.check_size(content, [modality])
    assert rules.limits["vision"] > rules.limits["audio"]


def check_size(content: RecordDict, *modalities: str) -> None:
    rules = UpdateRules(TRAINED, Task.regression, config_with(*PLAIN), PRIOR[Task.regression])
    rules.limits = {"audio": 1_000, "vision": 10_000}
    rules.check_size(content, modalities)


def array(size: int, dtype: str = "uint8", stype: str = "safetensors") -> RecordDict:
    return RecordDict({"tensors": ArrayRecord({"0": Array(dtype, (size,), stype, bytes(size))})})


def fields(**values: object) -> RecordDict:
    return RecordDict({"c": ConfigRecord(values)})


@pytest.mark.parametrize(("asked", "most"), [(["audio"], 1_000), (["audio", "vision"], 10_000)])
def test_more_bytes_than_that_are_refused_with_both_numbers(asked: list[str], most: int) -> None:
    check_size(array(SLACK * most), *asked)
    words = f"sends {SLACK * most + 1:,} bytes of tensors, expected at most {most:,}"
    with pytest.raises(RejectedUpdateError, match=words):
        check_size(array(SLACK * most + 1), *asked)
    check_size(array(SLACK * 10_000))  # of a node that was asked for nothing


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (fields(**{str(n): n for n in range(10_000)}), r"\d letters"),
        (fields(a=["x" * 40_000] * 2), "80,0.. letters"),
        (fields(a=[""] * 40_000), r"\d letters"),
        (fields(a=b"x" * 65_536), "65,5.. letters"),
        (RecordDict({"c" * 65_537: ConfigRecord()}), "65,537 letters"),
        (RecordDict({"m": MetricRecord({"a" * 65_537: 1})}), "65,5.. letters"),
        (array(0, dtype="x" * 65_536, stype="numpy.ndarray"), "letters"),
    ],
)
def test_what_is_no_tensor_has_its_bounds_too(content: RecordDict, words: str) -> None:
    with pytest.raises(RejectedUpdateError, match=words):
        check_size(content, "audio")


def test_there_is_one_array() -> None:
    two = ArrayRecord({name: Array("uint8", (1,), "safetensors", b"x") for name in "ab"})
    with pytest.raises(RejectedUpdateError, match="2 arrays, expected at most 1"):
        check_size(RecordDict({"tensors": two}), "audio")
