"""The baselines that a federation is compared with, trained on this machine without any message.

``strategy.setting`` names one: `local`, every client alone, is a lower bound; `pooled` shows the
cost of federation; `centralised`, an upper bound, the cost of items with only one modality;
`closed_form` what linear experts do without a network. A round is ``client.local_epochs`` passes
with the settings of ``client.*``, as at a client; the optimiser continues from round to round.
Labels are standardised by the prior of the clients' train labels, as in a federation; train losses
of numbers are in units of its deviation.

A new baseline is one module of this package and an entry in `BASELINES`, and one file in
``conf/strategy`` that names it.
"""

from collections.abc import Callable
from typing import Any

from common.config import StrategyConfig
from common.errors import UserError
from server.baselines.baseline import Baseline, Sites, load_sites
from server.baselines.closed_form import ClosedForm
from server.baselines.full_model import centralised, pooled
from server.baselines.local import Local
from server.run.run import Run

#: ``strategy.setting`` to what builds the baseline.
BASELINES: dict[str, Callable[[Sites], Baseline]] = {
    "centralised": centralised,
    "closed_form": ClosedForm,
    "local": Local,
    "pooled": pooled,
}


def find_baseline(strategy: StrategyConfig) -> Callable[[Sites], Baseline]:
    """Return what builds the baseline that a strategy names.

    Raises `UserError` if there is no such baseline, or it does not train the architecture.
    """
    setting, architecture = strategy.setting, strategy.architecture
    if setting not in BASELINES:
        names = ", ".join(["federated", *sorted(BASELINES)])
        raise UserError(f"strategy.setting={setting}: expected one of {names}")
    if architecture != "ha_fedformer" and setting != "centralised":
        raise UserError(
            f"strategy.architecture={architecture} needs strategy.setting=centralised, "
            f"not {setting}"
        )
    return BASELINES[setting]


def run_baseline(run: Run) -> dict[str, Any]:
    """Train the baseline that ``strategy.setting`` names, and return the summary.

    Raises `UserError` if the data or the device do not suit it, or the loss stops being finite.
    """
    return run.execute(
        lambda run: find_baseline(run.config.strategy)(load_sites(run.config, run.data))
    )
