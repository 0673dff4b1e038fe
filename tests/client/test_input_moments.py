"""What every map of a model reads: by the change of outputs that it predicts, and step by step."""

import pytest
import torch
from torch import Tensor, nn

from client.input_moments import InputMoments
from common.config import ModelConfig
from common.data.batching import Padded
from common.model.encoder import SequenceEmbedding, valid_steps
from common.model.ha_fedformer import HAFedformer, ModelSpec, build_model
from common.posterior import Form
from common.structures import find_structure
from common.task import Task

LENGTHS = (5, 1, 3, 4)
LSTM = "decoder.lstm"


def built(*shape: int, causal: bool = False) -> HAFedformer:
    """Build a model of kernels of 3 steps and an LSTM of two layers."""
    config = ModelConfig(width=4, heads=2, layers=2, kernel_size=3, decoder_layers=2, causal=causal)
    spec = ModelSpec({"audio": shape}, 2, Task.regression, config, linear=("audio",))
    return build_model(spec, seed=0)


def batch(*lengths: int) -> Padded:
    """Draw items of 3 features whose padding is nonsense, so that it shows where it counts."""
    values = 1 + torch.randn(
        len(lengths), max(lengths), 3, generator=torch.Generator().manual_seed(0)
    )
    values[~valid_steps(torch.tensor(lengths), max(lengths))] = 1e3
    return Padded(values, torch.tensor(lengths))


def moments_of(model: HAFedformer, *batches: Padded) -> dict[str, Tensor]:
    moments = InputMoments(model)
    for padded in batches:
        moments.add("audio", padded)
    return moments.mean()


def run(model: HAFedformer, module: nn.Module, padded: Padded) -> tuple[Tensor, Tensor]:
    """Return what a module reads and gives."""
    seen: list[tuple[Tensor, Tensor]] = []
    hook = module.register_forward_hook(lambda _, read, given: seen.append((read[0], given)))
    with hook, torch.inference_mode():
        model.eval()("audio", padded)
    return seen[0]


MODULES = [name for name, module in built(3).named_modules() if hasattr(module, "weight")]
#: What is not trained, as the linear expert is not, is not measured.
MAPS = [name for name in MODULES if "norm" not in name and "linear" not in name]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", MAPS)
def test_moments_tell_how_much_outputs_change_with_the_weight(name: str, causal: bool) -> None:
    model, padded = built(3, causal=causal), batch(*LENGTHS)
    found = moments_of(model, padded)[f"{name}.weight"]
    module = model.get_submodule(name)
    weight = module.get_parameter("weight")
    _, before = run(model, module, padded)
    change = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        weight += change
    moved = run(model, module, padded)[1] - before
    if moved.ndim == 3:  # else there is one a item
        moved = moved[valid_steps(padded.lengths, moved.shape[1])]
    rows = change.flatten(1).double()
    expected = (rows @ found @ rows.T).trace()
    found = moved.double().square().sum(dim=1).mean()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


def test_moments_of_an_lstm_are_those_of_its_steps() -> None:
    model, padded = built(3), batch(*LENGTHS)
    lstm = model.decoder.lstm
    encodings, _ = run(model, lstm, padded)
    read: dict[str, list[Tensor]] = {}
    for encoding, length in zip(encodings, LENGTHS, strict=True):
        inputs = list(encoding[:length])
        for layer in (0, 1):
            ih, hh, b_ih, b_hh = (
                getattr(lstm, f"{name}_l{layer}").detach()
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            state, cell = torch.zeros(4), torch.zeros(4)
            read.setdefault(f"weight_ih_l{layer}", []).extend(inputs)
            for step, x in enumerate(inputs):
                read.setdefault(f"weight_hh_l{layer}", []).append(state)
                let_in, keep, new, out = (ih @ x + b_ih + hh @ state + b_hh).chunk(4)
                cell = keep.sigmoid() * cell + let_in.sigmoid() * new.tanh()
                state = out.sigmoid() * cell.tanh()
                inputs[step] = state
    found = moments_of(model, padded)
    for name, rows in read.items():
        assert len(rows) == sum(LENGTHS)
        stacked = torch.stack(rows).double()
        expected = stacked.T @ stacked / len(rows)
        torch.testing.assert_close(found[f"{LSTM}.{name}"], expected, rtol=1e-4, atol=1e-6)


def test_every_weight_that_is_a_map_has_moments_as_large_as_what_it_reads() -> None:
    model = built(3)
    found = moments_of(model, batch(*LENGTHS))
    maps = {name: weight for name, weight in model.named_parameters() if weight.ndim >= 2}
    assert found.keys() == maps.keys()
    for name, weight in maps.items():
        assert found[name].shape == (weight[0].numel(),) * 2
        assert found[name].dtype == torch.float64
        assert torch.equal(found[name], found[name].T)
        assert torch.linalg.eigvalsh(found[name]).min() > -1e-6 * found[name].max()


def test_an_embedding_of_its_own_for_each_step_is_not_one_map() -> None:
    model = built(5, 3)
    assert not isinstance(model.encoders["audio"].embed, SequenceEmbedding)
    maps = {name for name, weight in model.named_parameters() if weight.ndim >= 2}
    tokens = {f"encoders.audio.embed.{name}" for name in ("weight", "bias")}
    assert tokens < maps
    assert moments_of(model, batch(*LENGTHS)).keys() == maps - tokens


@pytest.mark.parametrize("shape", [(85,), (86,), (60_000,)])
def test_what_is_measured_is_what_the_server_expects(shape: tuple[int, ...]) -> None:
    # With kernels of 3 steps, 258 inputs are more than a precision is for; of 60,000 features it
    # would take 259 GB.
    model, padded = built(*shape), Padded(torch.zeros(2, 3, *shape), torch.tensor([3, 2]))
    expected = {
        name
        for name, weight in model.named_parameters()
        if find_structure("inputs").form(weight) is Form.row
    }
    assert moments_of(model, padded).keys() == expected
    assert ("encoders.audio.embed.weight" in expected) == (shape == (85,))


@pytest.mark.parametrize("shape", [(3,), (5, 3)])
def test_batches_add_up(shape: tuple[int, ...]) -> None:
    model, (values, lengths) = built(*shape), batch(*LENGTHS)
    parts = [Padded(values[:3], lengths[:3]), Padded(values[3:, :4], lengths[3:])]
    one, two = moments_of(model, Padded(values, lengths)), moments_of(model, *parts)
    assert one.keys() == two.keys()
    for name, moments in one.items():
        torch.testing.assert_close(two[name], moments, rtol=1e-4, atol=1e-6)
