"""Muon, the optimiser of the toy: momentum whose every matrix is made orthogonal before it is a step.

In a narrow network trained for a few hundred steps a handful of directions get all of Adam's attention. Muon
replaces the singular values of each weight matrix's momentum by (about) 1, so all directions move at once
(Jordan et al., 2024). Biases, tables, norms and embeddings stay with AdamW. docs/experiments.md has the measured difference.
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
    """Muon for the weights of linear and convolutional layers of `modules`, AdamW for everything else.

    lr is Muon's step, the length of an update relative to an orthogonal matrix; adam_lr is AdamW's. Multiply
    both during training by writing to `param_groups`.
    """

    def __init__(self, modules, lr=0.02, adam_lr=3e-3, momentum=0.95, weight_decay=0.01):
        matrices = [m.weight for module in modules for m in module.modules()
                    if isinstance(m, (torch.nn.Linear, torch.nn.Conv3d)) and min(m.weight.flatten(1).shape) > 16]
        known = {id(p) for p in matrices}
        others = [p for module in modules for p in module.parameters() if id(p) not in known]
        super().__init__([{"params": matrices, "lr": lr, "muon": True}, {"params": others, "lr": adam_lr, "muon": False}],
                         {"momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            update = self.muon_step if group["muon"] else self.adam_step
            for p in group["params"]:
                if p.grad is not None:
                    update(p, self.state[p], group)

    def muon_step(self, p, state, group):
        if not state:
            state["momentum"] = torch.zeros_like(p)
        state["momentum"].lerp_(p.grad, 1 - group["momentum"])
        direction = orthogonalize(p.grad.lerp(state["momentum"], group["momentum"]).flatten(1))
        scale = max(1, direction.shape[0] / direction.shape[1]) ** 0.5
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.add_(direction.reshape(p.shape), alpha=-group["lr"] * scale)

    def adam_step(self, p, state, group):
        if not state:
            state.update(step=0, first=torch.zeros_like(p), second=torch.zeros_like(p))
        state["step"] += 1
        state["first"].lerp_(p.grad, 0.1)
        state["second"].lerp_(p.grad.square(), 0.01)
        first = state["first"] / (1 - 0.9 ** state["step"])
        second = state["second"] / (1 - 0.99 ** state["step"])
        p.addcdiv_(first, second.sqrt() + 1e-8, value=-group["lr"])
