"""FedAvg in a loop with nothing but PyTorch in it."""

import torch
from work import Work

work, rounds = Work.read()
model = work.model()
for _ in range(rounds):
    sums: dict[str, torch.Tensor] = {}
    weights: dict[str, int] = {}
    received = {name: array.clone() for name, array in model.state_dict().items()}
    for client in work.clients:
        model.load_state_dict(received)
        work.train(model, client)
        for name, parameter in model.named_parameters():
            if work.is_of(name, client):
                added = len(client.labels) * parameter.detach()
                sums[name] = sums[name] + added if name in sums else added
                weights[name] = weights.get(name, 0) + len(client.labels)
    model.load_state_dict(received | {name: sums[name] / weights[name] for name in sums})
    work.tell(model)
