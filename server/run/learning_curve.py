"""The learning curve of a run as a picture."""

import io
from collections.abc import Sequence

from common.metrics import HEADLINE
from common.task import Task
from server.records import RoundRecord


def learning_curve(rounds: Sequence[RoundRecord], task: Task) -> bytes:
    """Return a PNG of the train losses, and of the headline metric on the validation items.

    There is at least one round.
    """
    # Imported here: half a second that no other command needs.
    import matplotlib.figure
    import matplotlib.ticker

    figure = matplotlib.figure.Figure(figsize=(10, 4), layout="constrained")
    losses, scores = figure.subplots(1, 2)
    metric = HEADLINE[task]
    numbers = [record.round for record in rounds]
    for name in rounds[0].validation:
        together = name == "multimodal"
        style = {"color": "black", "linewidth": 2.5} if together else {"linewidth": 1.2}
        score = [record.validation[name][metric] for record in rounds]
        (line,) = scores.plot(numbers, score, label=name, **style)
        # Without a reply there is no loss: a gap.
        loss = [record.train_loss.get(name) for record in rounds]
        if any(value is not None for value in loss):
            values = [float("nan") if value is None else value for value in loss]
            losses.plot(numbers, values, label=name, **style | {"color": line.get_color()})
    losses.set(title="Train loss", xlabel="round", ylabel="loss")
    scores.set(title=f"Validation {metric}", xlabel="round", ylabel=metric)
    for axes in (losses, scores):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
