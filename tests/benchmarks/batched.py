"""Whether training the clients of one modality as one program, with stacked weights, would pay.

    python tests/benchmarks/batched.py [--clients 1 3 10] [--pairs 5]

The paper's model of vision, as in `step.py`, with the clients' weights stacked and every matrix
product a batched one; `torch.func.vmap` supports no LSTM, so the LSTM is written out. Gradients are
clipped for each client separately. CPU milliseconds of a client's step beside the bare
loop for one client, in turns; medians over the pairs.
"""

import argparse
import math
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from step import BATCH, STEPS_OF_TIME, WIDTHS, bare, configs, made_up, timed
from torch import Tensor, nn

from common.config import Config, ModelConfig

MODALITY = "vision"


class Stacked(nn.Module):
    """The models of several clients; parameters are (clients, ...)."""

    def __init__(self, clients: int, config: ModelConfig) -> None:
        super().__init__()
        self.clients, self.config = clients, config
        d = config.width
        shapes = {"embed": (WIDTHS[MODALITY], d), "norm": (2, 1, d)}
        for layer in range(config.layers):
            shapes |= {f"{layer}.norm{number}": (2, 1, d) for number in (1, 2)}
            sizes = {"in": (d, 3 * d), "out": (d, d), "expand": (d, 4 * d), "contract": (4 * d, d)}
            shapes |= {f"{layer}.{name}": (1 + a, b) for name, (a, b) in sizes.items()}
        shapes |= {f"lstm{layer}": (1 + 2 * d, 4 * d) for layer in range(config.decoder_layers)}
        shapes |= {"grow": (1 + d, d), "shrink": (1 + d, d), "head": (1 + d, 1)}
        self.weights = nn.ParameterDict(
            {
                name.replace(".", "_"): nn.Parameter(0.1 * torch.randn(clients, *shape))
                for name, shape in shapes.items()
            }
        )

    def _linear(self, x: Tensor, name: str) -> Tensor:
        """Map (C, N, in); a weight's first row is its bias."""
        weight = self.weights[name]
        return torch.baddbmm(weight[:, :1], x, weight[:, 1:])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        scale, shift = self.weights[name].unbind(1)
        return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:]), scale)

    def _attend(self, x: Tensor, name: str, mask: Tensor) -> Tensor:
        clients, rows, d = x.shape
        heads = self.config.heads
        query, key, value = (
            self._linear(x, name)
            .view(clients * BATCH, rows // BATCH, 3, heads, d // heads)
            .permute(2, 0, 3, 1, 4)
        )
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return attended.transpose(1, 2).reshape(x.shape)

    def _lstm(self, x: Tensor, weight: Tensor) -> Tensor:
        """Map (C, T, B, d), step by step."""
        clients, steps, batch, d = x.shape
        bias, recurrent = weight[:, :1], weight[:, 1 + d :]
        read = torch.baddbmm(bias, x.reshape(clients, steps * batch, d), weight[:, 1 : 1 + d])
        hidden = cell = x.new_zeros(clients, batch, d)
        states = []
        for gates in read.view(clients, steps, batch, 4 * d).unbind(1):
            let_in, forget, out, new = torch.baddbmm(gates, hidden, recurrent).chunk(4, dim=-1)
            cell = forget.sigmoid() * cell + let_in.sigmoid() * new.tanh()
            hidden = out.sigmoid() * cell.tanh()
            states.append(hidden)
        return torch.stack(states, dim=1)

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Map (C, B, T, D) to (C, B)."""
        config, d = self.config, self.config.width
        clients, batch, steps, width = features.shape
        embedded = math.sqrt(d) * torch.bmm(
            features.view(clients, -1, width), self.weights["embed"]
        )
        x = F.dropout(embedded, config.embedding_dropout)
        for layer in range(config.layers):
            attended = self._attend(self._norm(x, f"{layer}_norm1"), f"{layer}_in", mask)
            x = x + F.dropout(self._linear(attended, f"{layer}_out"), config.residual_dropout)
            grown = F.relu(self._linear(self._norm(x, f"{layer}_norm2"), f"{layer}_expand"))
            hidden = F.dropout(grown, config.relu_dropout)
            x = x + F.dropout(self._linear(hidden, f"{layer}_contract"), config.residual_dropout)
        states = self._norm(x, "norm").view(clients, batch, steps, d).transpose(1, 2)
        for layer in range(config.decoder_layers):
            states = self._lstm(states, self.weights[f"lstm{layer}"])
        last = states[:, -1]
        decoded = last + self._linear(F.relu(self._linear(last, "grow")), "shrink")
        return self._linear(decoded, "head")[..., 0]


def stacked(clients: int, steps: int, config: Config) -> Callable[[], object]:
    """Return so many local steps of all clients."""
    torch.manual_seed(0)
    model = Stacked(clients, config.model)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=config.client.lr, fused=True)
    inputs = torch.randn(steps, clients, BATCH, STEPS_OF_TIME, WIDTHS[MODALITY])
    wanted = torch.randn(steps, clients, BATCH)
    mask = torch.ones(clients * BATCH, 1, 1, STEPS_OF_TIME, dtype=torch.bool)

    def run() -> None:
        for features, labels in zip(inputs, wanted, strict=True):
            loss = (model(features, mask) - labels).abs().mean(dim=1).sum()
            optimizer.zero_grad()
            loss.backward()
            gradients = [
                each.grad.view(clients, -1) for each in parameters if each.grad is not None
            ]
            norms = torch.stack([each.norm(dim=1) for each in gradients]).norm(dim=0)
            shares = (config.client.max_grad_norm / (norms + 1e-6)).clamp(max=1)
            for gradient in gradients:
                gradient.mul_(shares[:, None])
            optimizer.step()

    return run


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 3, 10])
    parser.add_argument("--pairs", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    config, _ = configs()
    steps = 10
    alone = bare(made_up(MODALITY, steps * BATCH), config)
    alone()
    for clients in given.clients:
        together = stacked(clients, steps, config)
        together()
        pairs = [
            (timed(together, steps * clients), timed(alone, steps)) for _ in range(given.pairs)
        ]
        stack, one = (statistics.median(each) for each in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        print(
            f"{clients:3} clients: {stack:.1f} ms of CPU a client's step, {one:.1f} of one alone; "
            f"ratio {ratio:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
