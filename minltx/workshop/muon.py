"""Muon, the optimiser of the toy: momentum whose every matrix is made orthogonal before it is a step.

In a narrow network trained for a few hundred steps a handful of directions get all of Adam's attention. Muon
replaces the singular values of each weight matrix's momentum by (about) 1, so all directions move at once
(Jordan et al., 2024). docs/experiments.md has the measured difference.
"""

import torch


def orthogonalize(matrix, steps=5):
    """(n, m) -> nearly its nearest matrix with singular values near 1, by Newton-Schulz iterations."""
    x = matrix / (matrix.norm() + 1e-7)
    if len(x) > x.shape[1]:
        return orthogonalize(matrix.T, steps).T
    for _ in range(steps):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x   # Jordan's coefficients: steep at 0, flat around 1
    return x


class Muon(torch.optim.Optimizer):
    """Muon for weights of two or more axes, of which all but the first count as one.

    lr is the length of an update relative to an orthogonal matrix.
    """

    def __init__(self, parameters, lr=0.02, momentum=0.95, weight_decay=0.01):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalize(p.grad.lerp(momentum, group["momentum"]).flatten(1))
                scale = max(1, update.shape[0] / update.shape[1]) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update.reshape(p.shape), alpha=-group["lr"] * scale)


def optimizers(modules, lr=0.02, adam_lr=3e-3):
    """[Muon, AdamW]: Muon for the linear and convolutional weights of `modules`, AdamW for everything else, which
    is biases, tables, norms, embeddings, and matrices so narrow that they have no directions to balance."""
    matrices = [m.weight for module in modules for m in module.modules()
                if isinstance(m, (torch.nn.Linear, torch.nn.Conv3d)) and min(m.weight.flatten(1).shape) > 16]
    known = {id(p) for p in matrices}
    others = [p for module in modules for p in module.parameters() if id(p) not in known]
    return [Muon(matrices, lr), torch.optim.AdamW(others, adam_lr, betas=(0.9, 0.99), weight_decay=0.0)]
