"""The bounds that a federation is compared with, trained on this machine without any message.

``strategy.setting`` chooses: `local`, below, is every client alone; `pooled` is what federation
costs; `centralised`, above, is what it costs that no item has more than one modality. A round is
what a client does in a round, ``client.local_epochs`` passes with the settings of ``client.*``, so
all see their items equally often; the optimiser goes on from round to round.
"""

from server.reference.execution import run_reference

__all__ = ["run_reference"]
