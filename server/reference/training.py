"""The training loop that all bounds share: a round is ``client.local_epochs`` passes.

Notation: B items, O outputs.
"""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from client.trainer import choose_device, make_optimizer
from common.config import ClientConfig
from common.data.batching import Padded
from common.errors import UserError
from common.model.losses import task_loss
from common.task import Task
from server.reference.batching import Batch

#: From the sequences of B items by modality to outputs (B, O).
Forward = Callable[[Mapping[str, Padded]], Tensor]

#: From a seed to all batches once, in an order of that seed.
OnePass = Callable[[int], Iterable[Batch]]


class Training:
    """A model and its optimiser, which goes on from round to round.

    Parameters
    ----------
    model
        Moved to ``client.device``.
    forward
        Runs the model.
    one_pass
        The batches of an epoch.
    task
        Kind of label; decides the loss.
    config
        ``client.*``, as for a client's local training.

    Raises
    ------
    UserError
        If this machine does not have the device.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: Forward,
        one_pass: OnePass,
        task: Task,
        config: ClientConfig,
    ) -> None:
        self.model = model.to(choose_device(config.device))
        self.config = config
        self._forward, self._one_pass, self._task = forward, one_pass, task
        self._optimizer = make_optimizer(list(model.parameters()), config)

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def round(self, seed: int) -> dict[str, float]:
        """Train for one round.

        Parameters
        ----------
        seed
            Decides the order of the items and the dropout, as in `client.trainer.train`: torch's
            global generators are seeded with it.

        Returns
        -------
        dict
            Title of the batches to the mean loss of their steps.

        Raises
        ------
        UserError
            If the loss stops being finite.
        """
        torch.manual_seed(seed)
        self.model.train()
        losses: dict[str, list[Tensor]] = {}
        for epoch in range(self.config.local_epochs):
            for batch in self._one_pass(seed + epoch):
                losses.setdefault(batch.title, []).append(self._step(batch))
        means = {title: torch.stack(each).mean() for title, each in losses.items()}
        if not all(mean.isfinite() for mean in means.values()):
            raise UserError("the training loss is not finite; lower client.lr")
        return {title: mean.item() for title, mean in means.items()}

    def _step(self, batch: Batch) -> Tensor:
        device = next(self.model.parameters()).device
        outputs = self._forward({name: each.to(device) for name, each in batch.inputs.items()})
        loss = task_loss(outputs, batch.labels.to(device), self._task)
        self._optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        self._optimizer.step()
        return loss.detach()
