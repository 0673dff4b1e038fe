"""The baselines that a federation is compared with, trained on this machine without any message.

``strategy.setting`` names one: `local`, every client alone, is a lower bound; `pooled` shows what
federation costs; `centralised`, an upper bound, shows what it costs that no item has more than one
modality. A round is what a client does in a round, ``client.local_epochs`` passes with the settings
of ``client.*``, so all see their items equally often; the optimiser goes on from round to round.

A new baseline is one module of this package with an entry in `baseline.BASELINES`, and one file in
``conf/strategy`` that names it.
"""
