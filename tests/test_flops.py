"""The formulas of minltx/workshop/flops.py count what torch's own counter counts, to the last digit."""

import math

import pytest
import torch
from tiny_releases import VAES
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import train_tiny
from minltx.dit import DiT, DiTConfig
from minltx.vae import VAEConfig, VideoVAE
from minltx.workshop import flops


def counted(work):
    """What torch counts while work() runs. Its counter does not know the fused attention of a CPU, and would
    silently count 0 for it: so attention runs as the products that it is made of."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        work()
    return counter.get_total_flops()


def run_dit(config, grid, words, batch=1, per_token=False, device="cpu", backward=False, checkpointing=False):
    """A pass of a new transformer on noise."""
    with torch.device(device):
        dit = DiT(config)
        latent = torch.randn(batch, config.latent_channels, *grid)
        t = torch.rand(batch, *grid) if per_token else torch.rand(batch)
        text, mask = torch.randn(batch, words, config.text_width), torch.ones(batch, words)
    if checkpointing:
        for block in dit.blocks:
            block.forward = checkpointed(block.forward)
    with torch.set_grad_enabled(backward):
        v = dit(latent, t, text, mask)
    if backward:
        v.square().sum().backward()


def checkpointed(forward):
    def run(*args):
        return torch.utils.checkpoint.checkpoint(forward, *args, use_reentrant=False)
    return run


TOY = train_tiny.TOY.model.dit
DITS = {"toy": TOY, "narrow": DiTConfig(8, 48, 3, 4, 20), "one block": DiTConfig(3, 36, 1, 2, 7),
        "space-time": DiTConfig(8, 48, 2, 4, 20, attention="space-time"),
        "no qk norm": DiTConfig(8, 48, 2, 4, 20, rope="absolute", qk_norm="none")}


@pytest.mark.parametrize("name", DITS)
@pytest.mark.parametrize("per_token", [False, True])
def test_a_forward_pass_of_the_transformer(name, per_token):
    config, grid, words, batch = DITS[name], (3, 2, 4), 5, 2
    tokens = math.prod(grid)
    expected = batch * flops.dit_flops(config, tokens, words, tokens if per_token else 1)
    assert counted(lambda: run_dit(config, grid, words, batch, per_token)) == expected


@pytest.mark.parametrize("name", DITS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_step_of_the_transformer(name, checkpointing):
    config, grid, words = DITS[name], (2, 3, 2), 6
    step = counted(lambda: run_dit(config, grid, words, backward=True, checkpointing=checkpointing))
    assert step == flops.training_flops(config, math.prod(grid), words, checkpointing)


def test_the_released_transformer_on_paper():
    """On the meta device nothing is computed or stored, but everything is counted."""
    config, grid, words = DiTConfig(), (16, 16, 24), 256
    expected = flops.dit_flops(config, 6144, words)
    assert counted(lambda: run_dit(config, grid, words, device="meta")) == expected
    assert expected / 1e12 == pytest.approx(29.3, abs=0.1)
    step = counted(lambda: run_dit(config, grid, words, device="meta", backward=True))
    assert step == flops.training_flops(config, 6144, words)
    shares = flops.dit_parts(config, 6144, words)
    assert sum(shares.values()) == expected and all(isinstance(count, int) for count in shares.values())


RELEASED = {"toy": train_tiny.TOY.model.vae, "0.9.5 in full": VAEConfig(),
            "separate log-variances": VAEConfig(4, 2, 8, (("stride", (1, 2, 2), 16),), 8,
                                                (("up", (1, 2, 2), 8), ("res", 1)), shared_logvar=False),
            "folded": VAEConfig(4, 2, 8, (("down", (2, 2, 2), 16),), 8, (("up", (2, 2, 2), 8), ("res", 1)),
                                fold=2)}


@pytest.mark.parametrize("name", [*VAES, *RELEASED])
def test_the_autoencoder(name):
    """The released one at full width on the meta device, at a full clip; the small ones for real."""
    config = {**VAES, **RELEASED}[name]
    full = name == "0.9.5 in full"
    st, sy, sx = config.stride
    size, batch = ((121, 512, 768), 1) if full else ((2 * st + 1, 2 * sy, sx), 2)
    with torch.device("meta" if full else "cpu"):
        vae, video, t = VideoVAE(config), torch.randn(batch, 3, *size), torch.rand(batch)
        latent = torch.randn(batch, *vae.latent_shape(*size))
    with torch.no_grad():
        assert counted(lambda: vae.encode(video)) == batch * flops.encode_flops(config, size)
        assert counted(lambda: vae.decode(latent, t)) == batch * flops.decode_flops(config, size)

    def step():
        vae.decode(vae.encode(video)[0], t).square().sum().backward()

    assert counted(step) == batch * flops.vae_training_flops(config, size)


def test_a_size_that_cannot_be_coded_is_an_error():
    with pytest.raises(ValueError, match="113 or 121"):
        flops.encode_flops(VAEConfig(), (120, 512, 768))
    with pytest.raises(ValueError, match="use 512 or 544"):
        flops.decode_flops(VAEConfig(), (121, 520, 768))


def test_t5():
    transformers = pytest.importorskip("transformers")
    sizes = {"width": 24, "layers": 3, "heads": 2, "head_width": 8, "hidden": 40}
    config = transformers.T5Config(vocab_size=50, d_model=24, num_layers=3, num_heads=2, d_kv=8, d_ff=40,
                                   feed_forward_proj="gated-gelu")
    t5 = transformers.T5EncoderModel(config).eval()
    ids = torch.randint(50, (2, 11))
    with torch.no_grad():
        assert counted(lambda: t5(ids)) == 2 * flops.t5_flops(11, **sizes)
    assert flops.t5_flops(256) / 1e12 == pytest.approx(2.4, abs=0.1)
