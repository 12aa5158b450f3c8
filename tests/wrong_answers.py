"""Wrong answers to the questions of the assignments, as learners write them.

{task: [(source, fragment)]}: the fragment is part of the hint that fits, or None if no hint knows the cause.
Then only a description of the difference may be given. test_checks.py judges them all.
"""

WRONG = {
    "A1.1": [
        ("lambda x0, noise, t: x0 + along(t.clamp(0.001, 0.999), x0) * (noise - x0)", "times 0 and 1"),
        ("lambda x0, noise, t: (1 - t.view(-1, *[1] * (x0.ndim - 1))) * noise + t.view(-1, *[1] * "
         "(x0.ndim - 1)) * x0", "runs the other way"),
        ("lambda x0, noise, t: torch.lerp(noise, x0, along(t, x0))", "runs the other way"),
        ("lambda x0, noise, t: (1 - t) * x0 + t * noise", "append axes"),
        ("lambda x0, noise, t: (1 - t[:, None]) * x0 + t[:, None] * noise", "one more axis"),
        ("lambda x0, noise, t: torch.sqrt(1 - along(t, x0) ** 2) * x0 + along(t, x0) * noise", "curved"),
        ("lambda x0, noise, t: x0 + along(t, x0) * noise", "fade out"),
        ("lambda x0, noise, t: ((1 - along(t, x0)) * x0 + along(t, x0) * noise).detach()", "no gradient"),
        ("lambda x0, noise, t: ((1 - along(t, x0)) * x0 + along(t, x0) * noise).double()",
         "order, shape or dtype"),
        ("lambda x0, noise, t: ((1 - along(t, x0)) * x0 + along(t, x0) * noise).float()",
         "got torch.float32"),
        ("lambda x0, noise, t: (1 - t[0]) * x0 + t[0] * noise", "first one for all"),
        ("lambda x0, noise, t: (1 - t.mean()) * x0 + t.mean() * noise", None),
        ("lambda x0, noise, t: (1 - t[:, None, None, None, None]) * x0 + t[:, None, None, None, None] "
         "* noise", "append axes"),
        ("lambda x0, noise, t: x0.lerp_(noise, along(t, x0))", "argument x0 in place"),
        ("def answer(x0, noise, t, cache={}):\n"
         "    key = tuple(x0.shape)\n"
         "    if key not in cache:\n"
         "        cache[key] = (1 - along(t, x0)) * x0 + along(t, x0) * noise\n"
         "    return cache[key]\n", "keep old values"),
        ("lambda x0, noise, t: (1 - t[:, None, None]) * x0 + t[:, None, None] * noise", "append axes"),
        ("def answer(x0, noise, t):\n"
         "    z = (1 - along(t, x0)) * x0 + along(t, x0) * noise\n", "is the return missing"),
    ],
    "A1.2": [
        ("lambda x0, noise: x0 - noise", "the sign"),
        ("lambda x0, noise: -(noise - x0)", "the sign"),
        ("lambda x0, noise: (noise - x0) / 2", "0.5 times"),
        ("lambda x0, noise: (noise - x0).abs()", None),
        ("lambda x0, noise: noise.sub_(x0)", "argument noise in place"),
        ("lambda x0, noise: (noise - x0).detach()", "no gradient"),
        ("lambda x0, noise: torch.from_numpy(noise.detach().numpy() - x0.detach().numpy())", "no gradient"),
        ("lambda x0, noise: noise", "noise itself"),
        ("lambda x0, noise: (noise - x0).flatten(1)", None),
        ("lambda x0, noise: None", "is the return missing"),
    ],
    "A1.3": [
        ("lambda z, v, t: z - along(t.clamp(0.001, 0.999), z) * v", "times 0 and 1"),
        ("lambda z, v, t: z + along(t, z) * v", "walk back"),
        ("lambda z, v, t: z - v", "whole step"),
        ("lambda z, v, t: z - (1 - along(t, z)) * v", "not 1 - t"),
        ("lambda z, v, t: (z - along(t, z) * v) / (1 - along(t, z))", "not the noise"),
        ("lambda z, v, t: z - t * v", "append axes"),
        ("lambda z, v, t: z.sub_(along(t, z) * v)", "argument z in place"),
        ("lambda z, v, t: (z - along(t, z) * v).clamp(-1, 1)", None),
        ("lambda z, v, t: along(t, z) * v - z", "-1 times"),
        ("lambda z, v, t: z - along(t, z) * v.detach()", "detached"),
        ("lambda z, v, t: z - t[:, None, None, None, None] * v", "append axes"),
    ],
    "A1.4": [
        ("def answer(v, target, weight):\n"
         "    error = (v - target).square() * weight\n"
         "    return error[error != 0].mean()\n", "without an error"),
        ("lambda v, target, weight: F.mse_loss(v, target)", "every token counts"),
        ("lambda v, target, weight: F.mse_loss(v * weight, target * weight)", "not part of the mean"),
        ("lambda v, target, weight: ((v - target) ** 2 * weight).sum() / weight.sum()",
         "one number per token"),
        ("lambda v, target, weight: ((v - target) ** 2 * weight).sum() / v.shape[0]", "a mean, not a sum"),
        ("lambda v, target, weight: (((v - target) ** 2).mean(-1, keepdim=True) * weight).sum()",
         "a mean, not a sum"),
        ("lambda v, target, weight: ((v - target) ** 2 * weight).sum() / (weight.sum() + 1)", None),
        ("lambda v, target, weight: (((v - target) ** 2).mean(-1, keepdim=True) * weight).sum() / "
         "weight.sum().item() * (1 + 1e-3)", "1.001 times"),
        ("lambda v, target, weight: float(((v - target) ** 2)[weight.expand_as(v) > 0].mean())", "got float"),
        ("lambda v, target, weight: ((v - target) ** 2 * (1 - weight)).sum() / (1 - "
         "weight).expand_as(v).sum()", "swapped"),
        ("lambda v, target, weight: ((v - target).abs() * weight).sum() / weight.expand_as(v).sum()",
         "absolute"),
        ("lambda v, target, weight: (((v - target) ** 2 * weight).flatten(1).sum(1) / "
         "weight.expand_as(v).flatten(1).sum(1)).mean()", "one mean over the batch"),
        ("lambda v, target, weight: ((v - target) ** 2)[weight.expand_as(v) > 0]", "one number"),
        ("lambda v, target, weight: (((v - target) ** 2).mean(-1) * weight).sum() / weight.sum()",
         "keepdim=True"),
    ],
    "A1.5": [
        ("lambda t, tokens: torch.sigmoid(torch.logit(t.clamp(min=1e-3)) + shift_mu(tokens))", None),
        ("lambda t, tokens: torch.sigmoid(torch.logit(t)) + shift_mu(tokens)", "not to t itself"),
        ("lambda t, tokens: torch.sigmoid(torch.logit(t) - shift_mu(tokens))", "towards data"),
        ("lambda t, tokens: t * math.exp(shift_mu(tokens))", "not t itself"),
        ("lambda t, tokens: (t * math.exp(shift_mu(tokens))).clamp(max=1)", None),
        ("lambda t, tokens: torch.sigmoid(torch.log(t) + shift_mu(tokens))", "you took log(t)"),
        ("lambda t, tokens: torch.log(t / (1 - t)) + shift_mu(tokens)", "still a logit"),
        ("lambda t, tokens: torch.sigmoid(t + shift_mu(tokens))", "take it first"),
        ("lambda t, tokens: torch.sigmoid(torch.logit(t, eps=1e-3) + shift_mu(tokens))", None),
        ("lambda t, tokens: torch.sigmoid(torch.logit(t) + tokens)", "number of tokens is not mu"),
        ("lambda t, tokens: torch.exp(shift_mu(tokens)) * t", "math.exp"),
        ("lambda t, tokens: torch.sigmoid(torch.logit(t) + shift_mu(1024))", None),
    ],
    "A1.6": [
        ("def answer(velocity, z, schedule):\n"
         "    for a, b in zip(schedule[:-1], schedule[1:]):\n"
         "        z = z + velocity(z, a.expand(len(z))).mul_(b - a)\n"
         "    return z\n", "do not write"),
        ("def answer(velocity, z, schedule):\n"
         "    for t, s in zip(schedule, schedule[1:]):\n"
         "        z = z + (t - s) * velocity(z, t.expand(len(z)))\n"
         "    return z\n", "away from the data"),
        ("def answer(velocity, z, schedule):\n"
         "    for t, s in zip(schedule, schedule[1:]):\n"
         "        z = z + (s - t) * velocity(z, s.expand(len(z)))\n"
         "    return z\n", "at t, not at t_next"),
        ("def answer(velocity, z, schedule):\n"
         "    for t, s in zip(schedule, schedule[1:]):\n"
         "        z = z - velocity(z, t.expand(len(z))) / (len(schedule) - 1)\n"
         "    return z\n", "own length"),
        ("def answer(velocity, z, schedule):\n"
         "    for t, s in zip(schedule, schedule[1:]):\n"
         "        z += (s - t) * velocity(z, t.expand(len(z)))\n"
         "    return z\n", "argument z in place"),
        ("def answer(velocity, z, schedule):\n"
         "    for t, s in zip(schedule, schedule[1:]):\n"
         "        z = z + (s - t) * velocity(z, t)\n"
         "    return z\n", "time per sample"),
        ("def answer(velocity, z, schedule):\n"
         "    for t, s in zip(schedule, schedule[1:]):\n"
         "        z = z + (s - t) * velocity(z, t.expand(len(z)))\n"
         "        return z\n", "after its first step"),
        ("def answer(velocity, z, schedule):\n"
         "    with torch.no_grad():\n"
         "        for t, s in zip(schedule, schedule[1:]):\n"
         "            z = z + (s - t) * velocity(z, t.expand(len(z)))\n"
         "    return z\n", "no gradient"),
        ("def answer(velocity, z, schedule):\n"
         "    for i in range(1, len(schedule) - 1):\n"
         "        z = z + (schedule[i + 1] - schedule[i]) * velocity(z, schedule[i].expand(len(z)))\n"
         "    return z\n", "first step is missing"),
        ("def answer(velocity, z, schedule):\n"
         "    for t in schedule[:-1]:\n"
         "        z = z - t * velocity(z, t.expand(len(z)))\n"
         "    return z\n", "t_next - t, not t"),
        ("def answer(velocity, z, schedule):\n"
         "    v = velocity(z, schedule[0].expand(len(z)))\n"
         "    return z + (schedule[-1] - schedule[0]) * v\n", "again at every step"),
        ("def answer(velocity, z, schedule):\n"
         "    dt = 1 / (len(schedule) - 1)\n"
         "    for t in schedule[:-1]:\n"
         "        z = z - dt * velocity(z, t.expand(len(z)))\n"
         "    return z\n", "not equal"),
        ("def answer(velocity, z, schedule):\n"
         "    for t, s in zip(schedule, schedule[1:]):\n"
         "        v = velocity(z, t.expand(len(z)))\n"
         "        v *= s - t\n"
         "        z = z + v\n"
         "    return z\n", "do not write"),
        ("def answer(velocity, z, schedule):\n"
         "    steps = torch.linspace(1, 0, len(schedule))\n"
         "    for t, s in zip(steps, steps[1:]):\n"
         "        z = z + (s - t) * velocity(z, t.expand(len(z)))\n"
         "    return z\n", None),
        ("def answer(velocity, z, schedule):\n"
         "    for t, s in zip(schedule, schedule[1:]):\n"
         "        z = z + (s - t) * velocity(z, torch.full((4,), float(t)))\n"
         "    return z\n", "RuntimeError"),
        ("def answer(velocity, z, schedule):\n"
         "    for t, s in zip(schedule, schedule[1:]):\n"
         "        z = z + (s - t) * velocity(z, torch.zeros(len(z)) + t)\n"
         "    return z\n", "not on a GPU"),
    ],
    "A1.7": [
        ("lambda f, x0, n, t: (f(x0.lerp(n, t.clamp(0.001, 0.999)[:, None]), t.clamp(0.001, 0.999))\n"
         "                      - (n - x0)).square().mean()", None),
        ("lambda net, x0, noise, t: F.mse_loss(net(interpolate(noise, x0, t), t), noise - x0)", "one error"),
        ("lambda net, x0, noise, t: F.l1_loss(net(interpolate(x0, noise, t), t), noise - x0)", "absolute"),
        ("lambda net, x0, noise, t: F.mse_loss(net(interpolate(x0, noise, t), 1 - t), noise - x0)",
         "that of its point"),
        ("lambda net, x0, noise, t: F.mse_loss(net(x0, t), noise - x0)", None),
        ("lambda net, x0, noise, t: F.mse_loss(net(noise, t), noise - x0)", None),
        ("lambda net, x0, noise, t: F.mse_loss(net(interpolate(x0, noise, t), t), noise)", "not the noise"),
        ("lambda net, x0, noise, t: F.mse_loss(net(interpolate(x0, noise, t), t), noise - x0).detach()",
         "no gradient"),
        ("lambda net, x0, noise, t: (net(interpolate(x0, noise, t), t) - noise + "
         "x0).square().sum(-1).mean()", "not their sum"),
        ("lambda net, x0, noise, t: F.mse_loss(net(interpolate(x0, noise, t).detach(), t), noise - x0)",
         "detached"),
        ("lambda net, x0, noise, t: (net(interpolate(x0, noise, t), t) - noise + x0).mean() ** 2",
         "one error"),
        ("lambda net, x0, noise, t: F.mse_loss(net(interpolate(x0, noise, t[:1]), t), noise - x0)", None),
        ("lambda net, x0, noise, t: F.mse_loss(net(interpolate(x0, noise, t), t), noise - x0, "
         "reduction='sum')", "not their sum"),
        ("lambda net, x0, noise, t: F.mse_loss(net(interpolate(noise, x0, t), 1 - t), noise - x0)",
         "repair the path"),
        ("lambda net, x0, noise, t: F.mse_loss(net(interpolate(noise, x0, t), t), x0 - noise)", "now agree"),
    ],
    "A2.1": [
        ("lambda x, p: x.reshape(x.shape[0], -1, x.shape[2], x.shape[3] // p, x.shape[4] // p)",
         "reshape alone"),
        ("lambda x, p: F.pixel_unshuffle(x.transpose(1, 2), p).transpose(1, 2)", "row the fast one"),
        ("lambda x, p: x[..., ::p, ::p].repeat(1, p * p, 1, 1, 1)", None),
        ("lambda x, p: F.pixel_unshuffle(x.mT.transpose(1, 2), p).transpose(1, 2)", "order, shape or dtype"),
        ("lambda x, p: F.pixel_unshuffle(x.mT.transpose(1, 2), p).transpose(1, 2).mT.detach()",
         "no gradient"),
        ("lambda x, p: F.pixel_unshuffle(x.mT.transpose(1, 2), p).transpose(1, 2).mT.float()",
         "got torch.float32"),
        ("lambda x, p: F.pixel_unshuffle(x.mT.transpose(1, 2), 2).transpose(1, 2).mT", None),
        ("lambda x, p: F.pixel_unshuffle(x.transpose(1, 2).flip(-1), p).transpose(1, 2)",
         "order, shape or dtype"),
        ("lambda x, p: x.unfold(3, p, p).unfold(4, p, p).permute(0, 6, 5, 1, 2, 3, 4).flatten(1, 3)",
         "slowest"),
        ("lambda x, p: x.unfold(3, p, p).unfold(4, p, p).permute(0, 5, 6, 1, 2, 3, 4).flatten(1, 3)",
         "slowest"),
    ],
    "A2.2": [
        ("lambda n: n // 8", "own"),
        ("lambda n: n // 8 + 2", "one too many"),
        ("lambda n: (n + 7) / 8", "//"),
        ("lambda n: -(-n // 8) + 1", "one too many"),
        ("lambda n: (n - 1) // 8", "own"),
        ("lambda n: round(n / 8) + 1 if n > 1 else 0", None),
        ("lambda n: float((n - 1) // 8 + 1)", "//"),
        ("lambda n: min((n - 1) // 8 + 1, 13)", None),
    ],
    "A2.3": [
        ("lambda x: F.pad(x, (0, 0, 0, 0, 2, 0), mode='replicate').flip(2)", "order, shape or dtype"),
        ("lambda x: F.pad(x, (0, 0, 0, 0, 0, 2), mode='replicate')", "wrong side"),
        ("lambda x: F.pad(x, (0, 0, 0, 0, 1, 1), mode='replicate')", "not causal"),
        ("lambda x: F.pad(x, (0, 0, 0, 0, 1, 0), mode='replicate')", "two more frames"),
        ("lambda x: torch.cat([torch.zeros_like(x[:, :, :2]), x], 2)", None),
        ("lambda x: torch.cat([torch.zeros_like(x[:, :, :1])] * 2 + [x], 2)", "fade"),
        ("lambda x: torch.cat([x[:, :, 0]] * 2 + [x], 2)", "drops an axis"),
        ("lambda x: torch.cat([x[:, :, :1].detach()] * 2 + [x], 2)", "detached"),
        ("lambda x: torch.cat([x[:, :, :2], x], 2)", "first two frames"),
        ("lambda x: torch.cat([x.mean(2, keepdim=True)] * 2 + [x], 2)", None),
        ("lambda x: torch.cat([x[:1, :, :1].expand_as(x[:, :, :1])] * 2 + [x], 2)", None),
    ],
    "A2.4": [
        ("lambda x: F.normalize(x, dim=1)", "not their sum"),
        ("lambda x: F.layer_norm(x, x.shape[1:])", None),
        ("lambda x: x / x.std(1, keepdim=True)", "standard deviation"),
        ("lambda x: x / (x.square().mean(1, keepdim=True)).sqrt()", "nan"),
        ("lambda x: x / (x.square().mean(2, keepdim=True) + 1e-8).sqrt()", "axis 1"),
        ("lambda x: x / (x.abs().mean(1, keepdim=True) + 1e-8)", "absolute"),
        ("lambda x: x / (x.square().mean(1, keepdim=True) + 1e-8).sqrt().detach()", "detached"),
        ("lambda x: x * (x.square().mean(1, keepdim=True) + 1e-8).sqrt()", "do not multiply"),
        ("lambda x: x / (x.square().mean(1) + 1e-8).sqrt()", "keepdim=True"),
        ("lambda x: x / (x.square().mean(1, keepdim=True) + 1e-3).sqrt()", None),
        ("lambda x: x / (x.square().mean(1, keepdim=True).sqrt() + 1e-8)", "not to the root"),
        ("lambda x: F.rms_norm(x.movedim(1, -1), (x.shape[1],)).movedim(-1, 1)", "root is 1e-8"),
    ],
    "A2.5": [
        ("lambda m, lv: 0.5 * (m ** 2 + lv.clamp(-30, 20).exp() - 1 - lv.clamp(-30, 20)).mean()",
         "leave out the clamp"),
        ("lambda m, lv: 0.5 * (m ** 2 + lv.exp() - 1 - lv).sum(1).mean()", "not the sum"),
        ("lambda m, lv: -0.5 * (1 + lv - m ** 2 - lv.exp()).sum()", "not the sum"),
        ("lambda m, lv: (m ** 2 + lv.exp() - 1 - lv).mean()", "1/2"),
        ("lambda m, lv: 0.5 * (m ** 2 + lv.exp() ** 2 - 1 - lv).mean()", "not its square"),
        ("lambda m, lv: 0.5 * (m ** 2 + lv ** 2 - 1 - lv).mean()", "not the variance"),
        ("lambda m, lv: 0.5 * (m ** 2 + lv.exp() - 1 + lv).mean()", "subtract it"),
        ("lambda m, lv: 0.5 * (m ** 2 + lv.exp() - lv).mean()", "-1 is missing"),
        ("lambda m, lv: 0.5 * (m ** 2 + lv.exp() - 1 - lv)", "one number"),
        ("lambda m, lv: (0.5 * (m ** 2 + lv.exp() - 1 - lv).mean()).item()", "got float"),
        ("lambda m, lv: 0.5 * (m.detach() ** 2 + lv.exp() - 1 - lv).mean()", "detached"),
        ("lambda m, lv: 0.5 * (m.mean() ** 2 + (lv.exp() - 1 - lv).mean())", None),
        ("lambda m, lv: 0.5 * (m ** 2 + lv.exp() - 1 - lv).flatten(1).sum(1).mean()", "not the sum"),
    ],
    "A2.6": [
        ("lambda z, n, s, m, d: (1 - s) * (z * axes(d) + axes(m)) + s * n", "before you un-normalise"),
        ("lambda z, n, s, m, d: (z + s * n) * axes(d) + axes(m)", "fade out"),
        ("lambda z, n, s, m, d: ((1 - s) * z + s * n) * axes(d)", "mean is missing"),
        ("lambda z, n, s, m, d: ((1 - s) * z + s * n + axes(m)) * axes(d)", "after you multiply"),
        ("lambda z, n, s, m, d: ((1 - s) * z + s * n - axes(m)) / axes(d)", "once more"),
        ("lambda z, n, s, m, d: ((1 - s) * z + s * n) * axes(m) + axes(d)", "mean and std are swapped"),
        ("lambda z, n, s, m, d: ((1 - s) * z + s * n) * d + m", "append three axes"),
        ("lambda z, n, s, m, d: (s * z + (1 - s) * n) * axes(d) + axes(m)", "share of the noise"),
        ("lambda z, n, s, m, d: ((1 - s) * z + s * torch.randn_like(z)) * axes(d) + axes(m)", None),
        ("lambda z, n, s, m, d: ((1 - s) * z + s * n).mul_(axes(d)).add_(axes(m)).detach()", "no gradient"),
    ],
    "A2.7": [
        ("lambda x, p: F.pixel_shuffle(x.transpose(1, 2), p).transpose(1, 2)", "slow index is the column"),
        ("lambda x, p: x.reshape(x.shape[0], -1, x.shape[2], x.shape[3] * p, x.shape[4] * p)",
         "reshape alone"),
        ("lambda x, p: F.pixel_shuffle(x.mT.transpose(1, 2), p).transpose(1, 2)", "order, shape or dtype"),
        ("lambda x, p: F.interpolate(x[:, :x.shape[1] // p**2], scale_factor=(1, p, p))", None),
        ("lambda x, p: F.pixel_shuffle(x.mT.transpose(1, 2), p).transpose(1, 2).mT.detach()", "no gradient"),
        ("lambda x, p: F.pixel_shuffle(x.mT.transpose(1, 2), p).transpose(1, 2).mT.flip(-1)",
         "order, shape or dtype"),
        ("lambda x, p: F.pixel_shuffle(x.mT.transpose(1, 2), p).mT", "order, shape or dtype"),
    ],
    "A3.1": [
        ("lambda f, fps: f * 8 / fps", "covers one pixel frame"),
        ("lambda f, fps: f / fps", "covers 8"),
        ("lambda f, fps: (f * 8 - 8).clamp(min=0) / fps", "at 9"),
        ("lambda f, fps: (f * 8 + 1) / fps", "at 9"),
        ("lambda f, fps: (f * 8 - 7) / fps", "clamp"),
        ("lambda f, fps: (f * 8 - 7).clamp(min=0)", "still frames"),
        ("lambda f, fps: (f * 8 - 7).abs() / fps", None),
        ("lambda f, fps: ((f - 1) * 8 + 1).clamp(0, 20) / fps", None),
        ("lambda f, fps: torch.arange(len(f)).mul(8).sub(7).clamp(min=0) / fps", "the numbers in `frames`"),
        ("lambda f, fps: torch.cat([torch.zeros(1), (f[1:] * 8 - 7).clamp(min=0) / fps])",
         "the numbers in `frames`"),
        ("lambda f, fps: torch.maximum(f * 8 - 7, torch.zeros(len(f))) / fps", "not on a GPU"),
        ("lambda f, fps: (f * 8 - 7).clamp(min=0) // fps", "not //"),
    ],
    "A3.2": [
        ("def answer(p, n, theta, cache={}):\n"
         "    f = cache.setdefault(n, [math.pi / 2 * theta ** (j / (n - 1)) for j in range(n)])\n"
         "    return (2 * p - 1)[:, None] * torch.tensor(f, dtype=p.dtype, device=p.device)\n", None),
        ("lambda p, n, k: (2 * p - 1)[:, None] * k ** (-torch.linspace(0, 1, n)) * math.pi / 2", "descend"),
        ("lambda p, n, k: p[:, None] * k ** torch.linspace(0, 1, n) * math.pi / 2", "[-1, 1]"),
        ("lambda p, n, k: (2 * p - 1)[:, None] * k ** torch.linspace(0, 1, n) * math.pi", "2 times"),
        ("lambda p, n, k: (2 * p - 1)[:, None] * k ** torch.linspace(0, 1, n)", "pi/2 is missing"),
        ("lambda p, n, k: (2 * p - 1)[:, None] * 1000 ** torch.linspace(0, 1, n) * math.pi / 2", None),
        ("lambda p, n, k: (2 * p - 1)[None] * k ** torch.linspace(0, 1, n)[:, None] * math.pi / 2",
         "order, shape or dtype"),
        ("lambda p, n, k: (2 * p - 1)[:, None] * torch.linspace(math.pi / 2, k * math.pi / 2, n)", "ratios"),
        ("lambda p, n, k: (2 * p - 1)[:, None] * k ** (torch.arange(n) / n) * math.pi / 2", "i / (n - 1)"),
        ("lambda p, n, k: (2 * p - 1)[:, None] * k ** torch.linspace(0, 1, n) * math.pi / 2",
         "not on a GPU"),
        ("lambda p, n, k: (2 * p - 1)[:, None] * 10000 ** torch.linspace(0, 1, n) * math.pi / 2",
         "not always 10000"),
        ("lambda p, n, k: (1 - 2 * p)[:, None] * k ** torch.linspace(0, 1, n) * math.pi / 2", "-1 times"),
    ],
    "A3.3": [
        ("lambda x, c, s: x * c + torch.cat([-x[..., x.shape[-1] // 2:], x[..., :x.shape[-1] // 2]], "
         "-1) * s", "first half with the second"),
        ("lambda x, c, s: x * c", "both channels"),
        ("lambda x, c, s: x * s", None),
        ("lambda x, c, s: x * c + x.flip(-1) * s", None),
        ("lambda x, c, s: x * c + x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2) * s", "one minus is missing"),
        ("lambda x, c, s: x * c - turned(x) * s", "the sign"),
        ("lambda x, c, s: x * s + turned(x) * c", "swapped"),
        ("lambda x, c, s: (x * c + turned(x) * s).detach()", "no gradient"),
        ("lambda x, c, s: x * c + turned(x).detach() * s", "detached"),
        ("lambda x, c, s: x * c + turned(x)", None),
        ("lambda x, c, s: x * c + torch.cat([-x[..., 1::2], x[..., ::2]], -1) * s", "to each other again"),
        ("def answer(x, c, s):\n"
         "    (a, b), half = (x[..., ::2], x[..., 1::2]), x.shape[-1] // 2\n"
         "    c, s = c[:, :half], s[:, :half]\n"
         "    return torch.stack([a * c - b * s, a * s + b * c], -1).flatten(-2)\n", "twice in a row"),
    ],
    "A3.4": [
        ("lambda x: F.normalize(x, dim=-1)", "not their sum"),
        ("lambda x: F.layer_norm(x, x.shape[-1:], eps=1e-6)", "LayerNorm"),
        ("lambda x: x / x.norm(dim=-1, keepdim=True)", "not their sum"),
        ("lambda x: F.normalize(x, dim=-1) * x.shape[-1] ** 0.5", "is not the same"),
        ("lambda x: x / x.square().mean(-1, keepdim=True).clamp_min(1e-6).sqrt()", "is not the same"),
        ("lambda x: x / (x.square().mean(-1, keepdim=True) + 1e-8).sqrt()", "root is 1e-6"),
        ("lambda x: x / x.square().mean(-1, keepdim=True)", "by the root"),
        ("lambda x: x / x.square().mean(-1, keepdim=True).sqrt()", "nan"),
        ("lambda x: x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()", "root is 1e-6"),
        ("lambda x: x / (x.square().mean(-1) + 1e-6).sqrt()", "keepdim=True"),
        ("lambda x: x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt()", "token by token"),
        ("lambda x: x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt().detach()", "detached"),
        ("lambda x: x.mul_((x.square().mean(-1, keepdim=True) + 1e-6).rsqrt())", "argument x in place"),
        ("lambda x: x / (x.abs().mean(-1, keepdim=True) + 1e-6)", "absolute"),
        ("lambda x: x / (x.square().mean(-1, keepdim=True).sqrt() + 1e-6)", "not to the root"),
        ("lambda x: F.rms_norm(x, x.shape[-1:])", "root is 1e-6"),
        ("lambda x: F.layer_norm(x, x.shape[-1:])", "LayerNorm"),
        ("lambda x: x / x.std(-1, keepdim=True)", "standard deviation"),
        ("lambda x: x * (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()", "do not multiply"),
    ],
    "A3.5": [
        ("def answer(q, k, v, heads):\n"
         "    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))\n"
         "    weights = torch.exp(q @ k.mT / q.shape[-1] ** 0.5)\n"
         "    weights = weights / weights.sum(-1, keepdim=True)\n"
         "    return (weights @ v).transpose(1, 2).flatten(2)\n", "infinite"),
        ("lambda q, k, v, h: F.scaled_dot_product_attention(q, k, v)", "own softmax"),
        ("lambda q, k, v, h: join(F.scaled_dot_product_attention(*(heads(x, h) for x in (q, k, v)), "
         "is_causal=True))", None),
        ("lambda q, k, v, h: join(F.scaled_dot_product_attention(*(heads(x, h) for x in (q, k, v)), "
         "scale=1.0))", "is missing"),
        ("lambda q, k, v, h: join(F.scaled_dot_product_attention(*(heads(x, h) for x in (k, q, v))))",
         "q and k are swapped"),
        ("lambda q, k, v, h: join(F.scaled_dot_product_attention(*(heads(x, h) for x in (q, k, k))))", None),
        ("lambda q, k, v, h: join(F.scaled_dot_product_attention(*(heads(x, h) for x in (q, k, "
         "v)))).detach()", "no gradient"),
        ("lambda q, k, v, h: F.scaled_dot_product_attention(*(heads(x, h) for x in (q, k, v))).flatten(2)",
         "move the heads back"),
        ("lambda q, k, v, h: join(F.scaled_dot_product_attention(*(x.reshape(x.shape[0], h, "
         "x.shape[1], -1) for x in (q, k, v))))", "mixes tokens"),
        ("lambda q, k, v, h: join(F.scaled_dot_product_attention(*(heads(x, h) for x in (q, k, v)), "
         "dropout_p=0.1))", None),
        ("lambda q, k, v, h: join(F.scaled_dot_product_attention(*(heads(x, 2) for x in (q, k, v))))", None),
        ("def answer(q, k, v, h):\n"
         "    q, k, v = (x.reshape(x.shape[0], h, x.shape[1], -1) for x in (q, k, v))\n"
         "    return F.scaled_dot_product_attention(q, k, v).reshape(q.shape[0], q.shape[2], -1)\n",
         "mixes tokens"),
    ],
    "A3.6": [
        ("lambda x, a, b: norm(x) * b + a", "multiply by 1 + scale"),
        ("lambda x, a, b: x * (1 + b) + a", "normalise x"),
        ("lambda x, a, b: norm(x) * (1 + a) + b", "swapped"),
        ("lambda x, a, b: (norm(x) + a) * (1 + b)", "first scale"),
        ("lambda x, a, b: norm(x * (1 + b) + a)", "other way round"),
        ("lambda x, a, b: F.layer_norm(x, x.shape[-1:]) * (1 + b) + a", "does not subtract"),
        ("lambda x, a, b: norm(x) * (1 + b) - a", None),
        ("lambda x, a, b: norm(x) * (1 + b.detach()) + a", "detached"),
        ("lambda x, a, b: norm(x) * (1 + b[:, :1]) + a[:, :1]", None),
        ("lambda x, a, b: norm(x) + b + a", "you added the scale"),
    ],
    "A3.7": [
        ("lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v)", "not used"),
        ("lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m[:, None].expand(-1, "
         "q.shape[1], -1))", "not a bias"),
        ("lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m[:, None].bool())",
         "without any word must"),
        ("lambda q, k, v, m: (scores(q, k).softmax(-1) * m[:, None]) @ v", "add up to 1"),
        ("lambda q, k, v, m: scores(q, k).masked_fill(m[:, None] == 0, -math.inf).softmax(-1) @ v",
         "not -inf"),
        ("lambda q, k, v, m: (scores(q, k) - 1e4 * m[:, None]).softmax(-1) @ v", "masked the words"),
        ("lambda q, k, v, m: (scores(q, k) + 1e4 * (m[:, None] - 1)).softmax(1) @ v", "over the words"),
        ("lambda q, k, v, m: scores(q, k).softmax(-1) @ (v * m[..., None])", "add up to 1"),
        ("lambda q, k, v, m: (scores(q, k) * m[:, None]).softmax(-1) @ v", "score of 0"),
        ("lambda q, k, v, m: (scores(q, k) + 2 * (m[:, None] - 1)).softmax(-1) @ v", None),
        ("lambda q, k, v, m: (q @ k.mT + 1e4 * (m[:, None] - 1)).softmax(-1) @ v", "scale"),
        ("lambda q, k, v, m: scores(q, k).masked_fill(m[:, None] == 0, "
         "-math.inf).softmax(-1).nan_to_num() @ v", "without any word must"),
        ("lambda q, k, v, m: scores(q, k).masked_fill(m[:, None] == 0, -1e4).softmax(-1) @ v",
         "instead of the score"),
        ("lambda q, k, v, m: scores(q, k).masked_fill(m[:, None] == 0, -1e9).softmax(-1) @ v",
         "instead of the score"),
    ],
    "A4.1": [
        ("lambda v_null, v_text, scale: v_null + int(scale) * (v_text - v_null)", "a fraction"),
        ("lambda v_null, v_text, scale: v_null + round(scale) * (v_text - v_null)", "a fraction"),
        ("lambda a, b, s: b + s * (b - a)", "start from v_null"),
        ("lambda a, b, s: b + s * (a - b)", "not from v_text"),
        ("lambda a, b, s: a + s * b", "difference"),
        ("lambda a, b, s: s * b + (1 - s) * b", "not used"),
        ("lambda a, b, s: s * a + (1 - s) * b", "not from v_text"),
        ("lambda a, b, s: a + (s - 1) * (b - a)", "not by scale - 1"),
        ("lambda a, b, s: (a + s * (b - a)).clamp(-1, 1)", None),
        ("lambda a, b, s: a.add_(s * (b - a))", "argument v_null in place"),
        ("lambda a, b, s: a + s * (b - a).detach()", "detached"),
        ("lambda a, b, s: a.lerp(b, min(s, 1.0))", None),
        ("lambda a, b, s: a + 3 * (b - a)", None),
    ],
    "A4.2": [
        ("lambda t, strength: ((1 - strength).clamp(max=t)[..., 0], t - (1 - strength) < 1e-5)",
         "tolerance is"),
        ("lambda t, s: ((1 - s).clamp(max=t)[..., 0], 1 - s < t)", "from its own time on"),
        ("lambda t, s: (s.clamp(max=t)[..., 0], t - 1e-6 < s)", "1 - strength"),
        ("lambda t, s: (torch.full_like(s, t)[..., 0], t - 1e-6 < 1 - s)", "its own time"),
        ("lambda t, s: ((1 - s).clamp(max=t)[..., 0], s == 0)", "also moves"),
        ("lambda t, s: ((1 - s).clamp(max=t)[..., 0], s < 1)", "also stays"),
        ("lambda t, s: ((1 - s).clamp(max=t), t - 1e-6 < 1 - s)", "one axis less"),
        ("lambda t, s: ((1 - s).clamp(max=t)[..., 0], (t - 1e-6 < 1 - s)[..., 0])",
         "expected the shape (2, 5, 1)"),
        ("lambda t, s: ((1 - s).clamp(max=t)[..., 0], (t - 1e-6 < 1 - s).float())", "expected torch.bool"),
        ("lambda t, s: (1 - s).clamp(max=t)[..., 0]", "two results"),
        ("lambda t, s: ((1 - s).clamp(min=t)[..., 0], t - 1e-6 < 1 - s)", "smaller of"),
        ("lambda t, s: (t * (1 - s)[..., 0], t - 1e-6 < 1 - s)", "smaller of"),
        ("lambda t, s: ((1 - s).clamp(max=t)[..., 0], t < 1 - s)", "tolerance"),
        ("lambda t, s: ((1 - s).clamp(max=t)[..., 0], t <= 1 - s)", "tolerance"),
        ("lambda t, s: ((1 - s)[..., 0], t - 1e-6 < 1 - s)", "smaller of"),
    ],
    "A4.3": [
        ("def answer(velocity, z, schedule, strength):\n"
         "    s, own = schedule.tolist(), 1 - strength[..., 0]\n"
         "    for a, b in zip(s[:-1], s[1:]):\n"
         "        now, then = own.clamp(max=a), own.clamp(max=b)\n"
         "        z = z + (then - now)[..., None] * velocity(z, now)\n"
         "    return z\n", "inside a step"),
        ("def answer(velocity, z, schedule, strength):\n"
         "    own = 1 - strength\n"
         "    for a, b in zip(schedule.tolist(), schedule.tolist()[1:]):\n"
         "        z = torch.where(a <= own, z + velocity(z, own.clamp(max=a)[..., 0]) * (b - a), z)\n"
         "    return z\n", None),
        ("def answer(velocity, z, schedule, strength):\n"
         "    own = 1 - strength\n"
         "    for a, b in zip(schedule.tolist(), schedule.tolist()[1:]):\n"
         "        v = velocity(z, own.clamp(max=a)[..., 0]).mul_(b - a)\n"
         "        z = torch.where(a - own < 1e-6, z + v, z)\n"
         "    return z\n", "RuntimeError"),
        ("def answer(velocity, z, schedule, strength):\n"
         "    for t, n in zip(schedule[:-1].tolist(), schedule[1:].tolist()):\n"
         "        own, moves = token_times(t, strength)\n"
         "        z = torch.where(moves, z, z + (n - t) * velocity(z, own))\n"
         "    return z\n", "wrong tokens"),
        ("def answer(velocity, z, schedule, strength):\n"
         "    for t, n in zip(schedule[:-1].tolist(), schedule[1:].tolist()):\n"
         "        own, moves = token_times(t, strength)\n"
         "        z = z + (n - t) * velocity(z, own)\n"
         "    return z\n", "given tokens moved"),
        ("def answer(velocity, z, schedule, strength):\n"
         "    for t, n in zip(schedule[:-1].tolist(), schedule[1:].tolist()):\n"
         "        own, moves = token_times(t, strength)\n"
         "        z = torch.where(moves, z + (n - t) * velocity(z, torch.full_like(own, t)), z)\n"
         "    return z\n", "own time"),
        ("def answer(velocity, z, schedule, strength):\n"
         "    for t, n in zip(schedule[:-1].tolist(), schedule[1:].tolist()):\n"
         "        own, moves = token_times(t, strength)\n"
         "        z = torch.where(moves, z + (t - n) * velocity(z, own), z)\n"
         "    return z\n", "sign"),
        ("def answer(velocity, z, schedule, strength):\n"
         "    for t, n in zip(schedule[:-1].tolist(), schedule[1:].tolist()):\n"
         "        own, moves = token_times(n, strength)\n"
         "        z = torch.where(moves, z + (n - t) * velocity(z, own), z)\n"
         "    return z\n", "not with t_next"),
        ("def answer(velocity, z, schedule, strength):\n"
         "    times = schedule.tolist()\n"
         "    own, moves = token_times(times[0], strength)\n"
         "    for t, n in zip(times[:-1], times[1:]):\n"
         "        z = torch.where(moves, z + (n - t) * velocity(z, own), z)\n"
         "    return z\n", "again at every step"),
        ("def answer(velocity, z, schedule, strength):\n"
         "    for t, n in zip(schedule[:-1].tolist(), schedule[1:].tolist()):\n"
         "        own, moves = token_times(t, strength)\n"
         "        z = torch.where(moves, z + (n - t) * velocity(z, own), 0 * z)\n"
         "    return z\n", "keeps its value"),
        ("def answer(velocity, z, schedule, strength):\n"
         "    for t, n in zip(schedule[:-2].tolist(), schedule[1:].tolist()):\n"
         "        own, moves = token_times(t, strength)\n"
         "        z = torch.where(moves, z + (n - t) * velocity(z, own), z)\n"
         "    return z\n", "last step is missing"),
        ("def answer(velocity, z, schedule, strength):\n"
         "    for t, n in zip(schedule[:-1].tolist(), schedule[1:].tolist()):\n"
         "        own, moves = token_times(t, strength)\n"
         "        z[moves.expand_as(z)] += ((n - t) * velocity(z, own))[moves.expand_as(z)]\n"
         "    return z\n", "argument z in place"),
    ],
    "A4.4": [
        ("def answer(steps, tokens):\n"
         "    t = torch.arange(1, 0, -1 / steps, dtype=torch.float64)\n"
         "    return torch.cat([shift_times(t, tokens, 0.1), t.new_zeros(1)]).float()\n", "linspace"),
        ("lambda n, N: torch.linspace(1, 0, n + 1)", "shift is missing"),
        ("lambda n, N: torch.linspace(0, 1, n + 1)", None),
        ("lambda n, N: shift_times(torch.linspace(1, 1 / n, n), N, terminal=0.1)", "append it"),
        ("lambda n, N: torch.cat([shift_times(torch.linspace(1, 1 / n, n), N), torch.zeros(1)])",
         "must be 0.1"),
        ("lambda n, N: torch.cat([shift_times(torch.linspace(1, 1 / n, n).double(), N, 0.1), "
         "torch.zeros(1)])", "order, shape or dtype"),
        ("lambda n, N: torch.cat([shift_times(torch.linspace(1, 1 / n, n), N, 0.1), torch.tensor([0.1])])",
         None),
        ("lambda n, N: torch.cat([shift_times(torch.linspace(1, 0.1, n), N, 0.1), torch.zeros(1)])", None),
        ("lambda n, N: torch.cat([torch.ones(1), shift_times(torch.linspace(1, 1 / n, n), N, 0.1)])", None),
        ("lambda n, N: torch.cat([shift_times(torch.linspace(1, 1 / n, n), 1024, 0.1), torch.zeros(1)])",
         None),
    ],
    "A4.5": [
        ("lambda s, t: s.clone() if t >= s[0] else torch.cat([s.new_tensor([t]), s[s < t - 1e-6]])",
         "t comes first"),
        ("lambda s, t: torch.cat([s.new_tensor([round(t, 4)]), s[s < t - 1e-6]])", "not rounded"),
        ("lambda s, t: torch.cat([s.new_tensor([t]), s[s < t - 1e-5]])", None),
        ("lambda s, t: s[s < t]", "start at t itself"),
        ("lambda s, t: s[s <= t]", "start at t itself"),
        ("lambda s, t: torch.cat([s.new_tensor([t]), s[s <= t]])", "only once"),
        ("lambda s, t: torch.cat([s.new_tensor([t]), s[s < t]])", "within 0.000001"),
        ("lambda s, t: torch.cat([s[s < t - 1e-6], s.new_tensor([t])])", "order, shape or dtype"),
        ("lambda s, t: t * s", "model's own"),
        ("lambda s, t: torch.cat([s[:1], s[s < t - 1e-6]])", "not the schedule's first"),
        ("lambda s, t: torch.cat([torch.tensor([t]), s[s < t - 1e-6]])", "not on a GPU"),
        ("lambda s, t: torch.cat([s.new_tensor([t]), s[s < t - 0.1]])", None),
        ("lambda s, t: torch.linspace(t, 0, len(s))", None),
        ("lambda s, t: torch.cat([s.new_tensor([t]), s[s < t - 1e-2]])", None),
        ("lambda s, t: torch.cat([s.new_tensor([t]), s[s < t - 1e-6].flip(0)])", "order, shape or dtype"),
    ],
    "A4.6": [
        ("lambda net, x, n, t, g: loss(net, x, n, whole(t, g), whole(t, g), torch.ones_like(g))",
         "nothing is repaired"),
        ("lambda net, x, n, t, g: loss(net, x, n, whole(t, g), free(t, g), 1 - g)", "are noised"),
        ("lambda net, x, n, t, g: loss(net, x, n, free(t, g), whole(t, g), 1 - g)", "time 0 for given"),
        ("lambda net, x, n, t, g: loss(net, x, n, free(t, g), free(t, g), torch.ones_like(g))",
         "do not count"),
        ("lambda net, x, n, t, g: loss(net, x, n, free(t, 1 - g), free(t, 1 - g), g)", "swapped"),
        ("lambda net, x, n, t, g: loss(net, x, n, free(t, g), free(t, g), g)", "not given"),
        ("lambda net, x, n, t, g: loss(net, n, x, free(t, g), free(t, g), 1 - g)", None),
        ("lambda net, x, n, t, g: 2 * loss(net, x, n, free(t, g), free(t, g), 1 - g)", "2 times"),
        ("lambda net, x, n, t, g: loss(net, x, n, free(t, g), free(t, g), 1 - g).detach()", "no gradient"),
        ("lambda net, x, n, t, g: loss(net, x, n, free(t[:1], g), free(t[:1], g), 1 - g)", None),
        ("lambda net, x, n, t, g: loss(net, x * g, n, free(t, g), free(t, g), 1 - g)", None),
        ("lambda net, x, n, t, g: F.mse_loss(predict(net, x, n, t, g), n - x)", "do not count"),
        ("lambda net, x, n, t, g: (predict(net, x, n, t, g) - n + x).square().mean()", "do not count"),
        ("lambda net, x, n, t, g: ((predict(net, x, n, t, g) - n + x).square() * (1 - g)).mean()",
         "divide by the sum"),
        ("lambda net, x, n, t, g: ((predict(net, x, n, t, g) - n + x).square() * (1 - g)).sum() / "
         "(1 - g).sum()", "3 times"),
    ],
    "A5.1": [
        ("def answer(values, reference):\n"
         "    d = [a - b for a, b in zip(values, reference)]\n"
         "    half = T975[min(len(d) - 1, 10)] * statistics.stdev(d) / len(d) ** 0.5\n"
         "    return statistics.mean(d), statistics.mean(d) - half, statistics.mean(d) + half\n",
         "any number of seeds"),
        ("def answer(values, reference):\n"
         "    d = [a - b for a, b in zip(values, reference) if a != b]\n"
         "    half = T975[len(d) - 1] * statistics.stdev(d) / len(d) ** 0.5\n"
         "    return statistics.mean(d), statistics.mean(d) - half, statistics.mean(d) + half\n",
         "is a seed too"),
        ("lambda a, b: interval([x - y for x, y in zip(a, b)], 1.96)", "1.96"),
        ("lambda a, b: interval([y - x for x, y in zip(a, b)], T975[len(a) - 1])", "the sign"),
        ("lambda a, b: interval([x - y for x, y in zip(a, b)], T975[len(a)])", "degrees of freedom"),
        ("lambda a, b: interval([x - y for x, y in zip(a, b)], T975[len(a) - 1] * len(a) ** 0.5)",
         "narrower"),
        ("lambda a, b: interval([x - y for x, y in zip(sorted(a), sorted(b))], T975[len(a) - 1])", None),
        ("lambda a, b: interval([x - y for x, y in zip(a, b)], T975[len(a) - 1])[:2]",
         "expected 3 values, got 2"),
        ("lambda a, b: interval([abs(x - y) for x, y in zip(a, b)], T975[len(a) - 1])", None),
        ("lambda a, b: interval([x - y for x, y in zip(a, b)], T975[2])", None),
        ("lambda a, b: interval([x - statistics.mean(b) for x in a], T975[len(a) - 1])", "not of the values"),
        ("lambda a, b: interval([x - y for x, y in zip(a, b)], T975[len(a) - 1] / 2)", None),
        ("lambda a, b: interval([x - y for x, y in zip(a, b)], 1)", "one standard error"),
        ("lambda a, b: (lambda m, low, high: (m, high, low))(*interval([x - y for x, y in zip(a, b)], "
         "T975[len(a) - 1]))", "another order"),
    ],
    "A5.2": [
        ("def answer(p):\n"
         "    order, n = sorted(range(len(p)), key=p.__getitem__), len(p)\n"
         "    raw = [min(1.0, p[k] * (n - i)) for i, k in enumerate(order)]\n"
         "    out = [0.0] * n\n"
         "    for i, k in enumerate(order):\n"
         "        out[k] = max(raw[i], raw[i - 1]) if i else raw[0]\n"
         "    return out\n", "largest so far"),
        ("lambda p: [min(1.0, len(p) * x) for x in p]", "Bonferroni"),
        ("lambda p: p", "not corrected"),
        ("lambda p: [min(1.0, (len(p) - i) * x) for i, x in enumerate(p)]", "sort first"),
        ("lambda p: [min(1.0, (len(p) - sorted(p).index(x)) * x) for x in p]", "largest so far"),
        ("lambda p: sorted(p)", "not corrected"),
        ("lambda p: [x <= 0.05 / len(p) for x in p]", "(bool)"),
        ("lambda p: [min(1.0, x * 3) for x in p]", None),
        ("lambda p: [1 - (1 - x) ** len(p) for x in p]", None),
        ("lambda p: [x / len(p) for x in p]", None),
        ("lambda p: p.sort() or p", "not corrected"),
        ("def answer(p):\n"
         "    order = sorted(range(len(p)), key=lambda i: p[i])\n"
         "    found, largest = [0.0] * len(p), p.sort() or 0.0\n"
         "    for rank, i in enumerate(order):\n"
         "        largest = found[i] = max(largest, min(1.0, (len(p) - rank) * p[rank]))\n"
         "    return found\n", "argument p in place: make a new one"),
        ("lambda p: [len(p) * x for x in p]", "Bonferroni"),
        ("lambda p: running(p, lambda rank, n: n)", "Bonferroni"),
        ("lambda p: running(p, lambda rank, n: n / (rank + 1))", "Benjamini"),
        ("lambda p: running(p, lambda rank, n: rank + 1)", "largest factor"),
        ("lambda p: running(p, lambda rank, n: n - rank - 1)", "end at 0"),
        ("lambda p: running(p, lambda rank, n: n - rank, range(len(p)))", "sort first"),
        ("lambda p: sorted(running(p, lambda rank, n: n - rank))", "order in which they came"),
        ("lambda p: [min(1.0, (len(p) - i) * x) for i, x in enumerate(p.sort())]", "argument p in place"),
    ],
    "A5.3": [
        ("def answer(low, high, more):\n"
         "    low, high = (low, high) if more else (-high, -low)\n"
         "    return 'holds' if low > 0.01 else 'does not' if high < -0.01 else 'cannot be told'\n", None),
        ("lambda low, high, more: 'holds' if low > 0 else 'does not' if high < 0 else 'cannot be told'",
         "less is better"),
        ("lambda low, high, more: 'holds' if (low + high > 0) == more else 'does not'", "both ends"),
        ("lambda low, high, more: 'holds'", None),
        ("lambda low, high, more: (low > 0) == more", "(bool)"),
        ("lambda low, high, more: 'cannot be told' if low <= 0 <= high else 'does not' if more else "
         "'holds'", None),
        ("lambda low, high, more: 'cannot be told' if low <= 0 <= high else 'holds'", None),
        ("lambda low, high, more: 'cannot be told' if low < 0 < high else 'holds' if (low >= 0) == "
         "more else 'does not'", "ends at 0"),
        ("lambda low, high, more: 'cannot be told' if low <= 0 <= high else 'does not' if (low > 0) == "
         "more else 'holds'", "swapped"),
        ("lambda low, high, more: 'holds' if (low >= 0 if more else high <= 0) else 'does not' if (high < 0 "
         "if more else low > 0) else 'cannot be told'", "ends at 0"),
    ],
    "A5.4": [
        ("lambda s, e: seeds(s, e, lambda n: T975[n], lambda n: n ** 0.5)", "degrees of freedom"),
        ("lambda s, e: seeds(s, e, lambda n: T975[n - 1], lambda n: n)", "root of n"),
        ("lambda s, e: seeds(s, e, lambda n: T975[n - 1], lambda n: (n - 1) ** 0.5)", "not of n - 1"),
        ("lambda s, e: seeds(s, e, lambda n: 1.96, lambda n: n ** 0.5)", "1.96"),
        ("lambda s, e: seeds(s, e, lambda n: T975[n - 1], lambda n: 1)", "divide by the root of n"),
        ("lambda s, e: 5", None),
        ("lambda s, e: float(seeds(s, e, lambda n: T975[n - 1], lambda n: n ** 0.5) or 0)", "(float)"),
        ("lambda s, e: seeds(s, e, lambda n: T975[n - 1], lambda n: n ** 0.5) or 20", "return None"),
        ("lambda s, e: seeds(s / 2, e, lambda n: T975[n - 1], lambda n: n ** 0.5)", None),
        ("lambda s, e: max(2, math.ceil((1.96 * s / e) ** 2))", "1.96"),
        ("lambda s, e: seeds(s, e, lambda n: T975[n], lambda n: n, 19)", "nothing is repaired"),
        ("lambda s, e: seeds(s, e, lambda n: T975[n], lambda n: n)", "two errors are left"),
        ("lambda s, e: seeds(s, e, lambda n: T975[n], lambda n: n ** 0.5, 19)", "two errors are left"),
        ("lambda s, e: seeds(s, e, lambda n: T975[n - 1], lambda n: n, 19)", "two errors are left"),
        ("lambda s, e: seeds(s, e, lambda n: T975[min(n, 19)], lambda n: n ** 0.5)", "degrees of freedom"),
        ("lambda s, e: seeds(s, e, lambda n: T975[n - 1], lambda n: n ** 0.5, 19)", "range(2, 21)"),
        ("def answer(s, e):\n"
         "    for n in range(2, 21):\n"
         "        if T975[n - 1] * s / n ** 0.5 <= e:\n"
         "            return n\n"
         "        return None\n", "after the loop"),
        ("def answer(s, e):\n"
         "    for n in range(2, 21):\n"
         "        if T975[n - 1] * s / n ** 0.5 < e:\n"
         "            return n\n", "use <="),
        ("def answer(s, e):\n"
         "    found = seeds(s, e, lambda n: T975[n - 1], lambda n: n ** 0.5)\n", "is the return missing"),
    ],
}
HELPERS = """
import math
import statistics
import torch
import torch.nn.functional as F
from minltx.course.questions import T975
from minltx.flow import flow_loss, shift_mu, shift_times
from minltx.sampler import token_times

def along(t, x):
    return t.reshape(-1, *[1] * (x.ndim - 1))

def interpolate(x0, noise, t):
    return (1 - along(t, x0)) * x0 + along(t, x0) * noise

def axes(x):
    return x[:, None, None, None]

def turned(x):
    return torch.stack([-x[..., 1::2], x[..., 0::2]], -1).flatten(-2)

def heads(x, h):
    return x.unflatten(-1, (h, -1)).transpose(1, 2)

def join(x):
    return x.transpose(1, 2).flatten(2)

def norm(x):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()

def scores(q, k):
    return q @ k.mT / q.shape[-1] ** 0.5

def free(t, given):
    return t[:, None, None] * (1 - given)

def whole(t, given):
    return t[:, None, None].expand_as(given)

def loss(net, x0, noise, point, time, weight):
    return flow_loss(net((1 - point) * x0 + point * noise, time[..., 0]), noise - x0, weight)

def predict(net, x0, noise, t, given):
    return net((1 - free(t, given)) * x0 + free(t, given) * noise, free(t, given)[..., 0])

def interval(d, factor):
    mean, half = statistics.mean(d), factor * statistics.stdev(d) / len(d) ** 0.5
    return mean, mean - half, mean + half

def running(p, factor, order=None):
    found, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i]) if order is None else order):
        largest = max(largest, min(1.0, factor(rank, len(p)) * p[i]))
        found[i] = largest
    return found

def seeds(spread, effect, quantile, root, last=20):
    return next((n for n in range(2, last + 1) if quantile(n) * spread / root(n) <= effect), None)
"""


def function_of(source):
    """A wrong answer's function."""
    space = {}
    exec(HELPERS, space)
    if source.startswith("def "):
        exec(source, space)
        return space["answer"]
    return eval(source, space)
