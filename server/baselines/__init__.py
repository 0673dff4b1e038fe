"""The baselines that a federation is compared with, trained on this machine without any message.

``strategy.setting`` names one: `local`, every client alone, is a lower bound; `pooled` shows the
cost of federation; `centralised`, an upper bound, the cost of items with only one modality. A round
is ``client.local_epochs`` passes with the settings of ``client.*``, as at a client; the optimiser
continues from round to round.

A new baseline is one module of this package with an entry in `baseline.BASELINES`, and one file in
``conf/strategy`` that names it.
"""
