"""The judge of moving digits: it reads what clips show, and finds faults that were planted in real ones."""

import pytest
import torch

from minltx.evaluation import digits
from minltx.toy.data import COLOURS, DIRECTIONS, DataConfig, MovingDigit, MovingDigits, draw_digits, render

CONFIG = DataConfig()
FRAMES, HALF = CONFIG.frames, CONFIG.frames // 2


@pytest.fixture(scope="module")
def held_out():
    return MovingDigits(*draw_digits(300, 1), CONFIG)


@pytest.fixture(scope="module")
def classifier(held_out):
    return digits.classifier_for(held_out)


def read(video, scenes, classifier, config=CONFIG):
    return digits.read_clips(video, scenes, classifier, config.digit_size)


def rates(video, scenes, classifier, config=CONFIG):
    return digits.rates(read(video, scenes, classifier, config), scenes, config)


def one(digit, colour, direction):
    return [MovingDigit(digit, colour, direction)]


# --- Reading ----------------------------------------------------------------------------------------------

def test_held_out_clips_are_read_as_their_captions_say(held_out, classifier):
    video, scenes = held_out.batch(100, torch.Generator().manual_seed(5))
    found = rates(video, scenes, classifier)
    assert found["every_frame"] >= 0.98 and found["colour"] == found["direction"] == 1
    assert found["speed"] == pytest.approx(1, abs=0.05)
    assert found["speed_spread"] == pytest.approx(1.2, abs=0.2)
    assert found["bend"] < 0.05 and found["jitter"] < 0.1 and found["overlap"] > 0.95
    assert found["twins"] < 0.05
    share = found["frames"]
    assert share >= found["every_frame"] and 0 <= found["illegible"] <= 1 - share


@pytest.mark.parametrize("colour", COLOURS)
def test_colours_survive_dimming_and_noise(held_out, classifier, colour):
    scenes = [one(4, colour, "up")]
    video = held_out.clips(scenes, torch.Generator().manual_seed(0))
    noise = torch.randn(video.shape, generator=torch.Generator().manual_seed(1))
    assert rates((video + 1) * 0.6 - 1 + 0.05 * noise, scenes, classifier)["colour"] == 1


@pytest.mark.parametrize("direction, mirrored",
                         [("left", "right"), ("right", "left"), ("up", "up"), ("down", "down")])
def test_direction_follows_the_picture_not_the_caption(held_out, classifier, direction, mirrored):
    video = held_out.clips([one(8, "cyan", direction)], torch.Generator().manual_seed(0))
    opposite = dict(zip(DIRECTIONS, ("right", "left", "down", "up")))[direction]
    for shown, way in ((video, direction), (video.flip(2), opposite), (video.flip(4), mirrored)):
        for name in DIRECTIONS:
            assert rates(shown, [one(8, "cyan", name)], classifier)["direction"] == (name == way)


def test_a_direction_needs_a_clear_way():
    assert digits.read_direction(torch.tensor([4.0, 1.0])) == "right"
    assert digits.read_direction(torch.tensor([0.5, -4.0])) == "up"         # y grows downwards
    assert digits.read_direction(torch.tensor([2.9, 0.0])) is None         # hardly moves
    assert digits.read_direction(torch.tensor([4.0, 3.0])) is None         # diagonal


def test_a_wrong_digit_is_a_wrong_digit(held_out, classifier):
    scenes = [one(d, "red", "left") for d in range(10)]
    video = held_out.clips(scenes, torch.Generator().manual_seed(4))
    wrong = [one((d + 1) % 10, "red", "left") for d in range(10)]
    assert rates(video, scenes, classifier)["every_frame"] >= 0.9
    assert rates(video, wrong, classifier)["every_frame"] == rates(video, wrong, classifier)["digit"] == 0
    found = digits.faults(read(video, wrong, classifier), wrong, CONFIG)
    assert all("wrong digit" in names for names in found)


def test_black_shows_nothing(classifier):
    scenes, video = [one(3, "red", "left")], -torch.ones(1, 3, FRAMES, 32, 32)
    found = rates(video, scenes, classifier)
    assert [found[name] for name in ("every_frame", "digit", "colour", "direction", "all")] == [0] * 5
    assert "vanishes" in digits.faults(read(video, scenes, classifier), scenes, CONFIG)[0]


def test_two_digits_are_distinguished_by_colour(classifier):
    config = DataConfig(size=64, digits=2)
    data = MovingDigits(*draw_digits(300, 1), config)
    scenes = [[MovingDigit(7, "red", "left"), MovingDigit(1, "cyan", "down")],
              [MovingDigit(2, "green", "up"), MovingDigit(5, "magenta", "right")]]
    video = data.clips(scenes, torch.Generator().manual_seed(3))
    found = rates(video, scenes, classifier, config)
    assert found["direction"] == found["colour"] == 1
    swapped = [[MovingDigit(7, "red", "down"), MovingDigit(1, "cyan", "left")], scenes[1]]
    assert rates(video, swapped, classifier, config)["direction"] == 0.5
    another = [[MovingDigit(7, "red", "left"), MovingDigit(1, "blue", "down")], scenes[1]]
    assert rates(video, another, classifier, config)["colour"] == 0.5


def test_twins_are_pairs_of_one_drawing(held_out, classifier):
    """Ten clips of one drawing at ten places, of a 3 or of a 5: all pairs of the same digit."""
    scenes = [one(d, "red", "left") for d in (3, 5) * 5]
    sprites = torch.stack([held_out.sprites[held_out.of_label[scene[0].digit][0]] for scene in scenes])
    centres = torch.full((10, 1, FRAMES, 2), 16.0) + torch.randn(10, 1, 1, 2)
    video = render(sprites[:, None], torch.tensor([[[1.0, 0, 0]]] * 10), centres, 32)
    assert rates(video, scenes, classifier)["twins"] == 1
    assert rates(video[:2], scenes[:2], classifier)["twins"] == 0                       # no such pair


# --- Planted faults ---------------------------------------------------------------------------------------

def planted(data, kind, count=100):
    """`count` clips of held-out digits with one fault, and their scenes. They are rendered frame by frame, so
    that drawing, colour, light and place may change during a clip."""
    generator, c = torch.Generator().manual_seed(8), data.config
    scenes = data.choose(count, generator, held_out=True)
    rows = [[data.of_label[(x.digit + other) % 10][torch.randint(20, (1,), generator=generator)].item()
             for other in (0, 3)] for (x,) in scenes]
    now, then = (data.sprites[torch.tensor(rows)[:, i]] for i in range(2))                # (n, S, S) each
    heading = torch.tensor([DIRECTIONS[x.direction] for (x,) in scenes]).float()[:, None]     # (n, 1, 2)
    across, time = heading.flip(-1), torch.linspace(0, 1, FRAMES)[:, None]
    path = (5 + 4 * torch.rand(count, 1, 1, generator=generator)) * heading * (time - 0.5)    # (n, F, 2)
    if kind == "stops":
        path = path[:, torch.arange(FRAMES).clamp(max=HALF)]
    elif kind == "bends":
        path = path + 3 * across * (torch.pi * time).sin()
    elif kind == "jumps":
        path = path + 2.5 * across * (time > 0.5)
    elif kind == "speed":
        path = path * 2
    names = list(COLOURS.values())
    colours = torch.tensor([COLOURS[x.colour] for (x,) in scenes]).float()
    frames = []
    for f in range(FRAMES):
        late, sprites, shown = f > HALF, now, colours
        if kind == "morphs" and late:
            sprites = then
        if kind == "illegible" and late:
            sprites = now * (torch.arange(now.shape[1]) < now.shape[1] // 2)[:, None]     # the upper half
        if kind == "wrong colour" and late:
            shown = torch.tensor([names[(names.index(COLOURS[x.colour]) + 1) % 6] for (x,) in scenes]).float()
        light = {"flickers": 0.75 if f % 2 else 1.0, "vanishes": 0.1 if f > 12 else 1.0}.get(kind, 1.0)
        frames.append(render(light * sprites[:, None], shown[:, None], 16 + path[:, None, f : f + 1], c.size))
    return torch.cat(frames, dim=2), scenes


def test_real_clips_have_no_faults(held_out, classifier):
    for seed in range(3):
        video, scenes = held_out.batch(100, torch.Generator().manual_seed(seed), held_out=True)
        assert sum(map(bool, digits.faults(read(video, scenes, classifier), scenes, CONFIG))) <= 2
    video, scenes = planted(held_out, "nothing")
    assert sum(map(bool, digits.faults(read(video, scenes, classifier), scenes, CONFIG))) <= 2


@pytest.mark.parametrize("kind", ["morphs", "illegible", "stops", "flickers", "bends", "jumps", "speed",
                                  "vanishes", "wrong colour"])
def test_a_planted_fault_is_found_and_named(held_out, classifier, kind):
    video, scenes = planted(held_out, kind)
    found = digits.faults(read(video, scenes, classifier), scenes, CONFIG)
    assert sum(kind in names for names in found) >= 95


def test_light_beside_the_digit_is_found(classifier):
    """A second digit in a large frame, of the same colour."""
    config = DataConfig(size=64)
    data = MovingDigits(*draw_digits(300, 1), config)
    scenes = data.choose(100, torch.Generator().manual_seed(0))
    video = data.clips(scenes, torch.Generator().manual_seed(1))
    both = torch.maximum(video, video.flip(0, 3, 4))
    apart = (digits.centres(digits.brightness(video))[0][:, 0] - digits.centres(
        digits.brightness(both - video - 1))[0][:, 0]).norm(dim=-1) > 30
    found = digits.faults(read(both, scenes, classifier, config), scenes, config)
    assert apart.sum() >= 20
    assert sum("crowded" in names for names, far in zip(found, apart) if far) >= 0.95 * apart.sum()


def test_a_digit_that_travels_the_wrong_way_is_found(held_out, classifier):
    video, scenes = held_out.batch(50, torch.Generator().manual_seed(2))
    found = digits.faults(read(video.flip(2), scenes, classifier), scenes, CONFIG)
    assert all("wrong way" in names for names in found)


# --- The classifier ---------------------------------------------------------------------------------------

def test_the_shipped_classifier_is_used_only_where_it_reads_the_digits(held_out, monkeypatch):
    trained = []
    monkeypatch.setattr(digits, "train_classifier", lambda data, seed: trained.append(data) or "trained")
    assert isinstance(digits.classifier_for(held_out), digits.DigitClassifier) and trained == []
    images, labels = draw_digits(300, 1)
    mirrored = MovingDigits(images.flip(2), labels, CONFIG)
    assert digits.classifier_for(mirrored) == "trained" and trained == [mirrored]


@pytest.mark.slow
def test_a_classifier_learns_digits_and_what_is_none(held_out):
    """In a few steps; and of spoilt frames it says so more often than of whole ones."""
    data = MovingDigits(*draw_digits(1000, 0), CONFIG)
    classifier = digits.train_classifier(data, steps=200, batch=64)
    generator = torch.Generator().manual_seed(0)
    scenes = held_out.choose(200, generator)
    video = held_out.clips(scenes, generator, still=True)
    assert rates(video, scenes, classifier)["digit"] >= 0.9
    grey = digits.brightness(video)[:, 0]
    labels = torch.tensor([x.digit for (x,) in scenes])
    bad, changed = digits.spoil(grey, digits.centres(grey[:, None])[0][:, 0], labels, generator)
    assert 0.7 < changed.float().mean() <= 1
    said = [classifier(digits.windows(x, digits.centres(x[:, None])[0][:, 0], 22)).argmax(-1) == digits.NONE
            for x in (bad[changed], grey)]
    assert said[0].float().mean() > 0.5 > 0.1 > said[1].float().mean()


def test_the_shipped_classifier_reads_reconstructions():
    from minltx.evaluation.report import reconstruct
    from minltx.toy import load_toy

    data = MovingDigits(*draw_digits(300, 1), CONFIG)
    video, scenes = data.batch(48, torch.Generator().manual_seed(0))
    found = digits.judge_clips(reconstruct(load_toy().vae, video), scenes, data, digits.classifier_for(data))
    assert found["every_frame"] >= 0.93 and found["faulty"] <= 0.1
