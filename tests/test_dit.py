"""The transformer: full attention, one time or a time per token, and a velocity of zero at the start."""

from types import SimpleNamespace

import pytest
import torch

from minltx.toy.data import MovingDigit, caption
from minltx.dit import DiT, DiTConfig, flatten_latent, unflatten_tokens
from minltx.layers import Attention, modulate, rms_norm, timestep_embedding
from minltx.toy.captions import CaptionEncoder, learn_words, motion_alone, nearest_words, tokenize
from minltx.toy.model import ToyModel

TINY = DiTConfig(latent_channels=4, width=48, depth=2, heads=4, text_width=32, stride=(8, 8, 8),
                 max_position=(2.0, 64.0, 64.0), theta=100.0)


def randomised(seed=0):
    """A DiT in which no table, norm or projection is at its special starting value."""
    torch.manual_seed(seed)
    dit = DiT(TINY)
    for p in dit.parameters():
        torch.nn.init.normal_(p, std=0.15)
    return dit


def inputs(batch=2, grid=(3, 2, 4), length=5):
    generator = torch.Generator().manual_seed(1)
    latent = torch.randn(batch, 4, *grid, generator=generator)
    return latent, torch.rand(batch, generator=generator), torch.randn(batch, length, 32, generator=generator)


def test_predicts_zero_at_the_start():
    latent, t, text = inputs()
    assert torch.equal(DiT(TINY)(latent, t, text), torch.zeros_like(latent))


def test_one_changed_voxel_changes_all():
    dit, (latent, t, text) = randomised(), inputs(batch=1)
    changed = latent.clone()
    changed[0, :, 1, 1, 2] += 1
    difference = (dit(changed, t, text) - dit(latent, t, text)).abs().amax(dim=1)
    assert (difference > 1e-6).all()


def test_a_time_per_token_of_one_value_is_the_global_time():
    dit, (latent, t, text) = randomised(), inputs()
    per_token = t[:, None, None, None].expand(2, 3, 2, 4)
    torch.testing.assert_close(dit(latent, per_token, text), dit(latent, t, text), rtol=0, atol=1e-5)
    other = per_token.clone()
    other[:, 0] = 0
    assert (dit(latent, other, text) - dit(latent, t, text)).abs().max() > 1e-3


def test_masked_words_do_not_count():
    dit, (latent, t, text) = randomised(), inputs()
    mask = torch.tensor([[1.0, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    out = dit(latent, t, text, mask)
    torch.testing.assert_close(out[:1], dit(latent[:1], t[:1], text[:1, :3]), rtol=0, atol=1e-5)
    assert (out[1:] - dit(latent[1:], t[1:], text[1:, :3])).abs().max() > 1e-3


def test_frame_rate_matters():
    dit, (latent, t, text) = randomised(), inputs()
    assert (dit(latent, t, text, fps=8) - dit(latent, t, text, fps=16)).abs().max() > 1e-4


def test_after_one_step_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    dit, words, (latent, t, _) = DiT(TINY), CaptionEncoder(32), inputs()
    ids, mask = tokenize(["a red 7 moving left", "a blue 3 moving up"])
    parameters = [*dit.named_parameters(), *words.named_parameters()]
    optimizer = torch.optim.SGD([p for _, p in parameters], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (dit(latent, t, words(ids, mask), mask) - torch.ones_like(latent)).square().mean().backward()
        optimizer.step()
    without = [name for name, p in parameters if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_attention_equals_softmax_written_out():
    torch.manual_seed(0)
    layer, x = Attention(12, 3), torch.randn(2, 5, 12)
    torch.nn.init.normal_(layer.q_norm.weight)
    mask = torch.tensor([[1.0, 1, 1, 1, 0], [1, 1, 0, 1, 1]])
    q, k, v = layer.to_q(x), layer.to_k(x), layer.to_v(x)
    q, k = (a / (a.square().mean(-1, keepdim=True) + 1e-5).sqrt() for a in (q, k))
    q, k = q * layer.q_norm.weight, k * layer.k_norm.weight           # over the whole width, before the heads
    slow = torch.zeros(2, 5, 12)
    for b in range(2):
        for head in range(3):
            s = slice(4 * head, 4 * head + 4)
            scores = q[b, :, s] @ k[b, :, s].T / 2 + (1 - mask[b]) * -10000
            slow[b, :, s] = scores.softmax(-1) @ v[b, :, s]
    torch.testing.assert_close(layer(x, mask=mask), layer.to_out(slow), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 8e-3),
                                              (torch.float64, 1e-13)])
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_rms_norm_is_its_formula(dtype, tolerance, size):
    x = (torch.randn(3, 7, 64, dtype=torch.float64) * size).to(dtype)
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt()
    normed = rms_norm(x)
    assert normed.dtype == dtype
    torch.testing.assert_close(normed.double(), exact, rtol=tolerance, atol=tolerance)


def test_modulation_scales_then_shifts():
    x, shift, scale = torch.randn(2, 5, 6), torch.randn(2, 1, 6), torch.randn(2, 5, 6)
    out = modulate(x, shift, scale)
    for b in range(2):
        for n in range(5):
            torch.testing.assert_close(out[b, n], x[b, n] + scale[b, n] * x[b, n] + shift[b, 0])


@torch.no_grad()
def test_a_block_is_the_figure_of_the_paper_written_out():
    """Self-attention and feed-forward between modulation and gate; the caption attended to without either."""
    torch.manual_seed(0)
    block, h, text = randomised().blocks[0], torch.randn(2, 6, 48), torch.randn(2, 3, 48)
    modulation, turn = torch.randn(2, 1, 6, 48), lambda x: x.flip(-1)
    parts = block.scale_shift_table + modulation[:, 0]                                    # (B, 6, D)
    norm = lambda x: x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    wanted = h.clone()
    for b in range(2):
        shift, scale, gate, shift_ff, scale_ff, gate_ff = parts[b]
        x = wanted[b : b + 1]
        x = x + gate * block.attn1(norm(x) * (1 + scale) + shift, rotate=turn)
        x = x + block.attn2(x, text[b : b + 1])
        wanted[b] = (x + gate_ff * block.ff(norm(x) * (1 + scale_ff) + shift_ff))[0]
    torch.testing.assert_close(block(h, modulation, turn, text), wanted, rtol=1e-5, atol=1e-5)


def test_tokens_run_frame_by_frame_row_by_row():
    latent = torch.arange(2 * 3 * 2 * 4).reshape(1, 2, 3, 2, 4)
    tokens = flatten_latent(latent)
    assert tokens[0, (2 * 2 + 1) * 4 + 3].tolist() == latent[0, :, 2, 1, 3].tolist()
    assert torch.equal(unflatten_tokens(tokens, (3, 2, 4)), latent)


@pytest.mark.parametrize("t, golden", [
    (1000.0, {0: 0.562379, 1: 0.789627, 127: 0.994232, 128: 0.826880, 129: 0.613588, 255: 0.107254}),
    (50.0, {0: 0.964966, 1: -0.827987, 127: 0.999986, 128: -0.262375, 129: 0.560747, 255: 0.005373})])
def test_timestep_embedding_has_the_golden_values(t, golden):
    row = timestep_embedding(torch.tensor([t]))[0]
    for index, value in golden.items():
        assert abs(row[index].item() - value) < 1e-4


def test_words():
    ids, mask = tokenize(["A red 7, moving left.", ""])
    assert ids.shape == (2, 5) and mask.tolist() == [[1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]
    assert caption([MovingDigit(7, "red", "left")]) == "a red 7 moving left"
    scene = [MovingDigit(7, "red", "left"), MovingDigit(3, "blue", "up")]
    assert caption(scene, still=True) == "a red 7 and a blue 3"
    ids, mask = tokenize(["a _ 7", "_", "a red 7"])      # an open word keeps its place, unread
    assert mask.tolist() == [[1, 0, 1], [1, 0, 0], [1, 1, 1]]
    assert ids[0, 2] == ids[2, 2] and ids[1, 0] == 1
    with pytest.raises(ValueError, match="unknown word 'purple'.*magenta"):
        tokenize(["a purple 7 moving left"])
    with pytest.raises(ValueError, match="at most 16"):
        tokenize(["a " * 17])


def test_what_guidance_compares_with():
    """The motion alone, of one digit or two; nothing of a still, and of a model that was trained without."""
    two = "a red 7 moving left and a blue 3 moving up"
    assert motion_alone("a red 7 moving left") == "a _ _ moving left"
    assert motion_alone(two) == "a _ _ moving left and a _ _ moving up"
    assert motion_alone("a red 7 and a blue 3") == motion_alone("") == motion_alone("moving left") == ""
    assert motion_alone("A Red  7, moving left.") == "a _ _ moving left"
    assert motion_alone("red 7 moving up") == "_ _ moving up"
    for kind, expected in (("motion", ["a _ _ moving left", ""]), ("nothing", ["", ""])):
        model = SimpleNamespace(config=SimpleNamespace(negative=kind))
        assert ToyModel.negative(model, ["a red 7 moving left", "a red 7"]) == expected


def test_a_vocabulary_is_learned_from_captions():
    """The most frequent words first, at most 4,096 in all; the others are <unknown>, which adds nothing."""
    words = learn_words(["The cat, the CAT!", "the time-lapse <pad> cat's"])
    assert words == ["<pad>", "<nothing>", "<unknown>", "the", "cat", "cat's", "time-lapse"]
    ids, mask = tokenize(["a Cat", "", "the " * 99], words)
    assert ids[0, :2].tolist() == [2, 4] and ids[1, 0] == 1 and ids.shape == (3, 64)
    assert mask.sum(1).tolist() == [2, 1, 64]
    encoder = CaptionEncoder(16, words=words)
    assert (encoder.words.weight[2] == 0).all() and encoder.words.weight[3].abs().min() > 0
    assert torch.isfinite(encoder(ids, mask)).all()
    assert learn_words(["\x1b[2J red " + "x" * 61]) == [*words[:3], "red"]
    many = learn_words([f"often word{i}" for i in range(5000)])
    assert len(many) == 4096 and many[3] == "often"
    assert nearest_words("cet", words) == ["cat", "cat's"] and nearest_words("qqq", words) == words[3:]


def test_the_default_config_is_the_2b_model():
    with torch.device("meta"):
        dit = DiT(DiTConfig())
    assert sum(p.numel() for p in dit.parameters()) == 1_923_385_472
    assert len(list(dit.parameters())) == 715
