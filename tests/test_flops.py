"""The operations of minltx/bench/flops.py are what every layer does, added up by hand."""

import math

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from minltx.bench import flops
from minltx.dit import DiT, DiTConfig
from minltx.fast_cpu import accelerate
from minltx.layers import Attention
from minltx.training.memory import dit_inputs
from minltx.training.settings import TOY
from minltx.vae import VAEConfig, VideoVAE

SMALL = VAEConfig(4, 2, 8, (("down", (2, 2, 2), 16), ("res", 1), ("down", (1, 2, 2), 16)), 8,
                  (("res", 2), ("up", (2, 2, 2), 8), ("noisy", 1), ("up", (1, 2, 2), 8)))
DITS = {"toy": TOY.model.dit, "narrow": DiTConfig(8, 48, 3, 4, 20), "one block": DiTConfig(3, 36, 1, 2, 7)}
VAES = {"toy": TOY.model.vae, "small": SMALL}


def by_hand(network, work):
    """Every linear layer, convolution and attention, from the sizes that pass through it in work()."""
    total = 0

    def add(module, inputs, output):
        nonlocal total
        if isinstance(module, Attention):
            queries, keys = inputs[0].shape[-2], (inputs[1] if len(inputs) > 1 else inputs[0]).shape[-2]
            total += 2 * len(output) * 2 * queries * keys * output.shape[-1]    # scores, and weighted values
        elif isinstance(module, nn.Linear):
            total += 2 * output.numel() * module.in_features
        else:
            total += 2 * output.numel() * module.in_channels * math.prod(module.kernel_size)

    hooks = [module.register_forward_hook(add) for module in network.modules()
             if isinstance(module, (Attention, nn.Linear, nn.Conv3d))]
    with torch.no_grad():
        work()
    for hook in hooks:
        hook.remove()
    return total


def counted_on_a_cpu(work):
    """torch's counter on real tensors, with attention as the products that it is made of."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        work()
    return counter.get_total_flops()


# --- The transformer --------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", DITS)
def test_a_forward_pass_of_the_transformer(name):
    config, tokens, words = DITS[name], 24, 5
    dit, inputs = DiT(config), dit_inputs(config, tokens, words)
    expected = by_hand(dit, lambda: dit.forward_tokens(*inputs))
    assert flops.dit_flops(config, tokens, words) == expected > 0
    assert counted_on_a_cpu(lambda: dit.forward_tokens(*inputs)) == expected


@pytest.mark.parametrize("name", DITS)
def test_a_training_step_of_the_transformer(name):
    """Backward every product is done twice, once for the gradient of each factor; but the gradients of the
    noisy latents, of the caption and of the time's sinusoids are not needed."""
    config, tokens, words = DITS[name], 12, 6
    D, forward = config.width, flops.dit_flops(config, tokens, words)
    first_layers = 2 * D * (tokens * config.latent_channels + words * config.text_width + 256)
    assert flops.training_flops(config, tokens, words) == 3 * forward - first_layers
    parts = flops.dit_parts(config, tokens, words)
    blocks = forward - parts["latents, caption and time"]
    again = flops.training_flops(config, tokens, words, checkpointing=True)
    assert again == 3 * forward - first_layers + blocks


def test_the_parts_of_a_forward_pass():
    config, N, L, D = DITS["narrow"], 24, 5, 48
    parts = flops.dit_parts(config, N, L)
    assert parts.pop("latents, caption and time") > 0
    assert parts == {
        "self-attention, q k v out": 3 * 8 * N * D * D,
        "self-attention, q k' and weights v": 3 * 4 * N * N * D,
        "cross-attention, q k v out": 3 * (4 * N * D * D + 4 * L * D * D),
        "cross-attention, q k' and weights v": 3 * 4 * N * L * D, "feed-forward": 3 * 16 * N * D * D}


def test_the_released_transformer():
    assert flops.dit_flops(DiTConfig(), 6144, 256) / 1e12 == pytest.approx(29.3, abs=0.1)


def test_where_the_counter_would_be_wrong():
    """The reason for the meta device: on a CPU fused attention and oneDNN's own operators count 0."""
    config, tokens = TOY.model.dit, 320
    dit, inputs, vae = DiT(config), dit_inputs(config, tokens, 5), VideoVAE(SMALL)
    video = torch.zeros(1, 3, 9, 16, 16)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        dit.forward_tokens(*inputs)
    attention = sum(n for name, n in flops.dit_parts(config, tokens, 5).items() if "weights v" in name)
    assert counter.get_total_flops() == flops.dit_flops(config, tokens, 5) - attention
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        accelerate(vae).encode(video)
    if torch.backends.mkldnn.is_available():
        assert counter.get_total_flops() < flops.vae_flops(SMALL, (9, 16, 16))["encode"] / 2
    on_meta = accelerate(vae.to("meta"))
    assert flops.counted(lambda: on_meta.encode(video.to("meta"))).get_total_flops() == \
        flops.vae_flops(SMALL, (9, 16, 16))["encode"]


# --- The VAE ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", VAES)
def test_the_autoencoder(name):
    config = VAES[name]
    st, sy, sx = config.stride
    size = 2 * st + 1, 2 * sy, sx
    vae, video, t = VideoVAE(config), torch.rand(1, 3, *size), torch.rand(1)
    latent = torch.randn(1, *vae.latent_shape(*size))
    works = {"encode": lambda: vae.encode(video), "decode": lambda: vae.decode(latent, t)}
    found = flops.vae_flops(config, size)
    for part, work in works.items():
        assert found[part] == by_hand(vae, work) == counted_on_a_cpu(work)
    # The gradient of the clip is not needed; that of the sinusoids of t is, for t is scaled by a parameter.
    conv, voxels = vae.encoder.conv_in.conv, video[0, 0, :, ::config.patch, ::config.patch].numel()
    first = 2 * voxels * conv.weight.numel()
    assert found["training step"] == 3 * (found["encode"] + found["decode"]) - first


def test_the_released_autoencoder():
    found = flops.vae_flops(VAEConfig(), (121, 512, 768))
    assert found["encode"] / 1e12 == pytest.approx(139.7, abs=0.1)
    assert found["decode"] / 1e12 == pytest.approx(60.2, abs=0.1)


def test_a_size_that_cannot_be_encoded_is_an_error():
    with pytest.raises(ValueError, match="113 or 121"):
        flops.vae_flops(VAEConfig(), (120, 512, 768))
    with pytest.raises(ValueError, match="use 512 or 544"):
        flops.vae_flops(VAEConfig(), (121, 520, 768))


# --- The caption ------------------------------------------------------------------------------------------

def test_t5():
    transformers = pytest.importorskip("transformers")
    sizes = {"width": 24, "layers": 3, "heads": 2, "head_width": 8, "hidden": 40}
    config = transformers.T5Config(vocab_size=50, d_model=24, num_layers=3, num_heads=2, d_kv=8, d_ff=40,
                                   feed_forward_proj="gated-gelu")
    t5, ids = transformers.T5EncoderModel(config).eval(), torch.randint(50, (2, 11))
    with torch.no_grad():
        assert counted_on_a_cpu(lambda: t5(ids)) == 2 * flops.t5_flops(11, **sizes)
    assert flops.t5_flops(256) / 1e12 == pytest.approx(2.4, abs=0.1)


def test_the_command(capsys, monkeypatch):
    monkeypatch.setattr(flops, "DiTConfig", lambda: DITS["narrow"])
    monkeypatch.setattr(flops, "VAEConfig", lambda: TOY.model.vae)
    flops.main([])
    shown, tokens = capsys.readouterr().out, 31 * 64 * 96
    assert f"transformer, {tokens:,} tokens and 256 words" in shown and "  self-attention, q k v out" in shown
    assert f"{flops.dit_flops(DITS['narrow'], tokens, 256) / 1e12:.3f} TFLOP" in shown
