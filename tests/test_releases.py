"""The releases themselves, without files: parameter counts, how they sample, and how that is stored."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from tiny_releases import release

from minltx.pretrained import RELEASES, LTXVideo, load_pretrained
from minltx.pretrained.releases import SamplingConfig
from minltx.pretrained.stg import SpatioTemporalGuidance


def test_releases_have_the_counted_parameters():
    """SPEC 1.11 and 3.1: every release on the meta device, nothing allocated."""
    totals = {"0.9.0": (180_404_353, 238_789_296), "0.9.1": (180_404_353, 754_572_081)}
    for name, config in RELEASES.items():
        with torch.device("meta"):
            model = LTXVideo(config)
        encoder, decoder = totals.get(name, (694_098_881, 552_814_641))
        count = lambda network: sum(p.numel() for p in network.parameters())
        assert (count(model.vae.encoder), count(model.vae.decoder)) == (encoder, decoder)
        size = (13_042_569_344, 1215) if "13b" in name else (1_923_385_472, 715)
        assert (count(model.dit), len(model.dit.state_dict())) == size
        assert len(model.vae.state_dict()) == {"0.9.0": 190, "0.9.1": 294}.get(name, 226)


@torch.no_grad()
def test_one_caption_serves_several_seeds_and_scales_are_numbers_too():
    """The same videos alone or in a batch, and guidance as a number or as the dataclass."""
    model = release("0.9.5")
    text, null = [(torch.randn(1, length, 32), torch.ones(1, length)) for length in (5, 3)]
    options = dict(size=(9, 64, 64), steps=2, guidance=4.0, decode_t=None)
    video = model.generate(text, null, [4, 5], **options)
    for i, seed in enumerate((4, 5)):
        alone = model.generate(text, null, [seed], **options)
        torch.testing.assert_close(video[i : i + 1], alone, rtol=0, atol=1e-4)
    by_hand = replace(model.config.sampling.guidance, cfg=4.0)
    assert torch.equal(model.generate(text, null, [4, 5], **{**options, "guidance": by_hand}), video)
    skipping = replace(by_hand, stg=1.0, stg_blocks=(1,))
    first = model.generate(text, null, [4], **{**options, "guidance": skipping})
    assert (first - video[:1]).abs().max() > 1e-3
    assert torch.equal(model.generate(text, null, [4], **{**options, "guidance": skipping}, stg=0.0),
                       model.generate(text, null, [4], **options))
    sampling = model.sampling((9, 64, 64), 2, fps=12.0, decode_t=0.2)
    assert (sampling.fps, sampling.decode_t, sampling.decode_noise) == (12.0, 0.2, 0.025)


STORED = {          # how to sample, as earlier versions of minltx wrote it into a header or minltx.json
    "schedule": "linear_quadratic", "shifted": False, "shift_line": [[1024, 0.95], [4096, 2.05]],
    "terminal": None, "times": [1.0, 0.9, 0.4], "steps": 3, "guidance": {
        "cfg": 2.0, "stg": 0.5, "stg_blocks": [1], "stg_mode": "attention_skip", "rescale": 0.9},
    "stochastic": True, "condition_noise": 0.15, "decode_t": 0.05, "decode_noise": 0.025, "text_tokens": 256,
    "lowercase": False, "size": [121, 704, 1216], "fps": 30.0}


def test_sampling_settings_are_stored_as_before():
    sampling = SamplingConfig.restored(STORED, "here")
    assert sampling.guidance == SpatioTemporalGuidance(2.0, 0.5, (1,), "attention_skip", 0.9)
    assert sampling.times == (1.0, 0.9, 0.4) and sampling.size == (121, 704, 1216)
    assert json.loads(json.dumps(sampling.stored())) == STORED


@pytest.mark.parametrize("changes", [
    {"steps": 0}, {"schedule": "cosine"}, {"guidance": 3.0}, {"guidance": {"cfg": 1.0, "strength": 2}},
    {"guidance": {"stg_mode": "residual"}}, {"shift_line": [[1, 2]]}, {"shift_line": [[2, 0], [1, 0]]},
    {"size": [121, 704]}, {"terminal": 2}, {"fps": float("nan")}, {"times": [0.4, 1.0]}, {"extra": 1}])
def test_impossible_sampling_settings_are_refused(changes):
    with pytest.raises(ValueError, match="here: its sampling is not understood"):
        SamplingConfig.restored({**STORED, **changes}, "here")
    with pytest.raises(ValueError, match="here: its sampling is not understood"):
        SamplingConfig.restored([1], "here")


def test_without_safetensors_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    (tmp_path / "a.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="pip install safetensors"):
        load_pretrained(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="there is no"):                            # which is said first
        load_pretrained(tmp_path / "absent.safetensors")
