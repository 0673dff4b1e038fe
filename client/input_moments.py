"""Second moments of the inputs of each linear map of a model, over a client's items.

For outputs W a with inputs a, the mean of (W a - W_i a)^2 over the client's items is the quadratic
form of W - W_i with A_i = E[a a^T]: how much the client's own predictions would change if its W_i
were moved to W. So A_i is a precision of the rows of W_i, that of a Laplace approximation whose
output factor is the identity, and merging by it is RegMean (Jin et al. 2023, arXiv 2212.09849).
Maps of more than `MOST_INPUTS` inputs are not measured (`common.structures`).

Notation: B items, T steps, a tensor (out, ...) is read as a matrix (out, in).
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.data.batching import Padded
from common.model.encoder import SequenceEmbedding, valid_steps
from common.model.ha_fedformer import HAFedformer
from common.structures import is_wide


class InputMoments:
    """Sums of the moments over batches; puts its one-modality model into evaluation mode.

    Those of the encoder's maps and, unless it is left out, the decoder's.
    """

    def __init__(self, model: HAFedformer, decoder: bool = True) -> None:
        self._model, self._decoder = model, decoder
        self._sums: dict[str, Tensor] = {}
        self._rows: dict[str, int] = {}

    @torch.inference_mode()
    def add(self, modality: str, padded: Padded) -> None:
        """Add a batch; steps beyond an item's length are left out."""
        self._model.eval()
        valid = valid_steps(padded.lengths, padded.values.shape[1])
        with self._watched(valid):
            encodings = self._model.encode(modality, padded)
            if self._decoder:
                self._model.decoder(encodings, padded.lengths)

    def mean(self) -> dict[str, Tensor]:
        """Return the moments (in, in), float64 on the CPU, by the name of the map's tensor."""
        return {name: total.cpu() / self._rows[name] for name, total in self._sums.items()}

    @contextmanager
    def _watched(self, valid: Tensor) -> Iterator[None]:
        with ExitStack() as hooks:
            for name, module in self._model.named_modules():
                is_map = isinstance(module, (nn.Linear, SequenceEmbedding, nn.LSTM))
                if is_map and not any(map(is_wide, module.parameters(recurse=False))):
                    hook = partial(self._read, name, valid)
                    hooks.enter_context(module.register_forward_hook(hook))
            yield

    def _read(
        self, name: str, valid: Tensor, module: nn.Module, inputs: tuple[Tensor], _: object
    ) -> None:
        """Count the inputs of a map: (B, T, in) of valid steps, or (B, in)."""
        read = inputs[0]
        match module:
            case nn.Linear():
                self._count(f"{name}.weight", read[valid] if read.ndim == 3 else read)
            case SequenceEmbedding():
                padded = F.pad(read.transpose(1, 2), module.reach)
                # (B, D, T, k): a step reads D x k numbers in this order.
                windows = padded.unfold(2, module.kernel_size[0], 1).permute(0, 2, 1, 3)
                self._count(f"{name}.weight", windows[valid].flatten(1))
            case nn.LSTM():
                for layer in range(module.num_layers):
                    self._count(f"{name}.weight_ih_l{layer}", read[valid])
                    read, _unused = _single_layer(module, layer)(read)
                    before = F.pad(read, (0, 0, 1, 0))[:, :-1]
                    self._count(f"{name}.weight_hh_l{layer}", before[valid])

    def _count(self, name: str, rows: Tensor) -> None:
        # Float32 is exact enough for the rows of a batch, and takes half the time; but for rounding
        # it is symmetric.
        product = (rows.T @ rows).double()
        added = (product + product.T) / 2
        self._sums[name] = self._sums[name] + added if name in self._sums else added
        self._rows[name] = self._rows.get(name, 0) + len(rows)


def _single_layer(lstm: nn.LSTM, layer: int) -> nn.LSTM:
    """Return one layer of an LSTM alone, so that its outputs can be read."""
    first: Tensor = getattr(lstm, f"weight_ih_l{layer}")
    single = nn.LSTM(first.shape[1], lstm.hidden_size, batch_first=True).to(first)
    weights = {
        name: getattr(lstm, f"{name.removesuffix('_l0')}_l{layer}") for name in single.state_dict()
    }
    single.load_state_dict(weights)
    return single
