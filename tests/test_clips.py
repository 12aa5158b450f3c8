"""Folders of clips: read as they play, checked before training, held out for good, drawn by the generator."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from minltx.caption_files import captions_in
from minltx.toy.captions import tokenize
from minltx.training.settings import TOY
from minltx.vae import VideoVAE
from minltx.video import clips
from minltx.video.clips import Bucket, check_folder, choose_bucket, open_folder, parse_buckets, read_clip
from minltx.video.files import load_clip, save_mp4, save_video

VAE = VideoVAE(TOY.model.vae)      # clips have 4k+1 frames, sides are multiples of 8


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def pages(count, height=16, width=16, first=0):
    """Grey frames, each five levels brighter than the last, so that a pixel shows which frame it is from."""
    return [Image.new("RGB", (width, height), (first + 5 * i,) * 3) for i in range(count)]


def levels(video):
    """video (3, F, H, W) of such frames -> their numbers."""
    assert video.dtype == torch.uint8 and (video == video[:1, :, :1, :1]).all()
    return [x // 5 for x in video[0, :, 0, 0].tolist()]


def write(path, frames, milliseconds=60, text=None):
    more = {"save_all": True, "append_images": frames[1:], "duration": milliseconds}
    frames[0].save(path, **(more if Path(path).suffix == ".gif" else {}))
    if text is not None:
        Path(path).with_suffix(".txt").write_text(text)


# --- One file ---------------------------------------------------------------------------------------------

def test_a_gif_comes_back_frame_by_frame_at_its_rate(tmp_path):
    generator = np.random.default_rng(0)
    images = [Image.fromarray(generator.integers(0, 256, (8, 12, 3), dtype=np.uint8)) for _ in range(5)]
    write(tmp_path / "x.gif", images, 50)
    video, fps = read_clip(tmp_path / "x.gif")
    assert video.shape == (3, 5, 8, 12) and video.dtype == torch.uint8 and fps == 20
    for i, image in enumerate(images):
        assert np.array_equal(video[:, i].permute(1, 2, 0).numpy(), np.asarray(image))


def test_the_frames_of_a_gif_last_as_long_as_it_says(tmp_path):
    write(tmp_path / "x.gif", pages(4), [100, 300, 100, 200])
    video, fps = read_clip(tmp_path / "x.gif", fps=10)
    assert levels(video) == [0, 1, 1, 1, 2, 3, 3] and fps == 10
    write(tmp_path / "no_time.gif", pages(4), 0)
    assert read_clip(tmp_path / "no_time.gif")[1] == 10                   # as browsers play it


@pytest.mark.parametrize("source, target, expected", [
    (16, 8, list(range(0, 24, 2))), (16, 16, list(range(24))), (24, 16, [k * 3 // 2 for k in range(16)]),
    (8, 16, [k // 2 for k in range(48)]), (23.976, 24, list(range(24)))])
def test_frame_k_is_the_one_shown_at_time_k(source, target, expected):
    assert clips.resample([1 / source] * 24, target) == expected


@pytest.mark.parametrize("count", [1, 3, 9, 17, 25, 33])
def test_a_gif_made_at_16_fps_keeps_its_frames_though_it_stores_hundredths(tmp_path, count):
    write(tmp_path / "x.gif", pages(count), round(1000 / 16))
    assert levels(read_clip(tmp_path / "x.gif", fps=16)[0]) == list(range(count))
    # Other programs spread the rounding over the frames: 6, 7, 6, 6, ... hundredths.
    ticks = [round(6.25 * i) for i in range(count + 1)]
    write(tmp_path / "y.gif", pages(count), [10 * (b - a) for a, b in zip(ticks, ticks[1:])])
    assert levels(read_clip(tmp_path / "y.gif", fps=16)[0]) == list(range(count))


@pytest.mark.parametrize("ending", ["png", "jpg", "gif"])
def test_a_still_is_one_frame_at_any_rate(tmp_path, ending):
    write(tmp_path / f"x.{ending}", pages(1, first=100))
    for fps in (None, 1, 16):
        video, _ = read_clip(tmp_path / f"x.{ending}", fps)
        assert video.shape == (3, 1, 16, 16) and (video == 100).all()


def test_transparent_pixels_are_black_and_a_rotated_photo_is_upright(tmp_path):
    Image.new("RGBA", (8, 8), (255, 200, 100, 0)).save(tmp_path / "x.png")
    assert (read_clip(tmp_path / "x.png")[0] == 0).all()
    exif = Image.Exif()
    exif[0x0112] = 6                                                       # stored lying on its left side
    Image.new("RGB", (24, 8)).save(tmp_path / "x.jpg", exif=exif)
    assert read_clip(tmp_path / "x.jpg")[0].shape == (3, 1, 24, 8)


@pytest.mark.parametrize("ending", ["gif", "png", "jpg"])
def test_a_truncated_picture_or_gif_is_never_read_as_a_shorter_one(tmp_path, ending):
    path = tmp_path / f"x.{ending}"
    generator = np.random.default_rng(0)
    write(path, [Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(4)])
    whole, raw = read_clip(path)[0], path.read_bytes()
    for cut in range(len(raw)):
        path.write_bytes(raw[:cut])
        try:
            video, _ = read_clip(path)
        except ValueError as error:
            assert "cannot be read to its end" in str(error) and str(path) in str(error)
        else:                                          # only a checksum is missing, after the last pixel
            assert torch.equal(video, whole) and cut >= len(raw) - 20


def test_mp4_reads_back_with_its_frames_and_rate(tmp_path):
    pytest.importorskip("av")
    save_mp4(tmp_path / "x.mp4", pages(17, 32, 48), 16)
    video, fps = read_clip(tmp_path / "x.mp4")
    assert video.shape == (3, 17, 32, 48) and fps == pytest.approx(16)
    truth = 5 * torch.arange(17.0)
    assert (video.float().mean((0, 2, 3)) - truth).abs().max() < 3
    assert torch.equal(read_clip(tmp_path / "x.mp4", fps=8)[0], video[:, ::2])
    assert read_clip(tmp_path / "x.mp4", fps=8)[0].shape[1] == 9


def test_a_truncated_mp4_is_never_read_as_a_shorter_one(tmp_path):
    av = pytest.importorskip("av")
    generator = np.random.default_rng(0)
    with av.open(str(tmp_path / "x.mp4"), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=16)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(9):
            image = Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8))
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())
    raw = (tmp_path / "x.mp4").read_bytes()
    assert raw.find(b"moov") < raw.find(b"mdat")             # the index comes first, so the cut file opens
    with av.open(str(tmp_path / "x.mp4")) as container:      # cut in the middle of frames, and between them
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    assert len(packets) == 9
    for cut in [pos for pos, _ in packets] + [pos + size // 2 for pos, size in packets]:
        (tmp_path / "y.mp4").write_bytes(raw[:cut])
        with pytest.raises(ValueError, match="cannot be read to its end"):
            read_clip(tmp_path / "y.mp4")


def test_a_phone_video_that_is_stored_rotated_is_read_upright(tmp_path):
    pytest.importorskip("av")
    page = Image.new("RGB", (64, 32))
    page.paste((255, 255, 255), (0, 0, 32, 32))                            # the left half is white
    save_mp4(tmp_path / "x.mp4", [page] * 3, 16)
    one, w = (1 << 16).to_bytes(4, "big"), (1 << 30).to_bytes(4, "big")
    minus, nought = (-(1 << 16)).to_bytes(4, "big", signed=True), bytes(4)
    upright = one + nought * 3 + one + nought * 3 + w                      # the matrix in the track's header
    clockwise = nought + one + nought + minus + nought * 4 + w
    raw = (tmp_path / "x.mp4").read_bytes()
    track = raw.find(b"tkhd")
    assert upright in raw[track:]
    (tmp_path / "x.mp4").write_bytes(raw[:track] + raw[track:].replace(upright, clockwise, 1))
    video, _ = read_clip(tmp_path / "x.mp4")
    assert video.shape == (3, 3, 64, 32)
    assert (video[:, :, :28] > 200).all() and (video[:, :, 36:] < 50).all()  # left has become top


@pytest.mark.parametrize("ending", ["gif", "png", "jpg", "mp4"])
def test_a_given_file_is_read_as_a_training_clip_is(tmp_path, ending):
    """`load_clip`, which reads what is given to sample.py, and `read_clip` see the same pixels."""
    path, generator = tmp_path / f"x.{ending}", np.random.default_rng(0)
    frames = [Image.fromarray(generator.integers(0, 256, (24, 32, 3), dtype=np.uint8)) for _ in range(3)]
    if ending == "mp4":
        pytest.importorskip("av")
        save_mp4(path, frames, 16)
    else:
        write(path, frames)
    video, _ = read_clip(path, size=(16, 16))
    given = load_clip(path, 16, 16)
    assert given.shape == (1, 3, *video.shape[1:])
    assert torch.equal(((given[0] + 1) * 127.5).round().byte(), video)


def test_an_npz_gives_its_first_video_back(tmp_path):
    video = torch.rand(2, 3, 5, 8, 16) * 2 - 1
    save_video(tmp_path / "x.npz", video, ["one", "two"])
    assert (load_clip(tmp_path / "x.npz", 8, 16) - video[:1]).abs().max() <= 0.5 / 127.5 + 1e-6
    with np.load(tmp_path / "x.npz") as stored:
        assert stored["prompts"].tolist() == ["one", "two"] and stored["frames"].shape == (2, 5, 8, 16, 3)
    (tmp_path / "x.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:-40])
    with pytest.raises(ValueError, match="cannot read .*x.npz"):
        load_clip(tmp_path / "x.npz", 8, 16)


@pytest.mark.parametrize("ending, codec", [("mov", "libx264"), ("webm", "libvpx"), ("mkv", "libx264"),
                                           ("avi", "mpeg4")])
def test_other_videos_are_read_whole_or_not_at_all(tmp_path, ending, codec):
    av = pytest.importorskip("av")
    path, generator = tmp_path / f"x.{ending}", np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=16)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for i in range(9):
            noise = generator.integers(0, 64, (32, 32, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noise + np.uint8(20 * i))))
        container.mux(stream.encode())
    path.with_suffix(".txt").write_text("growing light")
    video, _ = read_clip(path, fps=16)
    assert video.shape == (3, 9, 32, 32) and (video.float().mean((0, 2, 3)).diff() > 5).all()
    (clip,), bad = check_folder(tmp_path, VAE, 16)
    assert clip.caption == "growing light" and bad == []
    raw = path.read_bytes()
    for share in (0.5, 0.8):
        path.write_bytes(raw[: round(share * len(raw))])
        with pytest.raises(ValueError, match="cannot be read to its end|has no frames"):
            read_clip(path)


@pytest.mark.parametrize("ending", ["mp4", "mov", "webm"])
def test_without_av_a_video_asks_for_it(tmp_path, monkeypatch, ending):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    path = tmp_path / f"x.{ending}"
    path.write_bytes(b"")
    for call in (lambda: read_clip(path), lambda: check_folder(tmp_path, VAE, 16),
                 lambda: load_clip(path, 8, 8)):
        with pytest.raises(ValueError, match="pip install av"):
            call()


# --- Buckets ----------------------------------------------------------------------------------------------

def test_buckets_are_written_as_they_are_read():
    text = "17x32x32,9x48x32,1x64x64"
    buckets = parse_buckets(text)
    assert buckets == (Bucket(17, 32, 32), Bucket(9, 48, 32), Bucket(1, 64, 64))
    assert ",".join(map(str, buckets)) == text
    for wrong in ("", "17x32", "17x32x32,", "17x32x0", "-17x32x32", "17x32x32x3", "9x٣x8"):
        with pytest.raises(ValueError, match="write frames x height x width, such as 17x32x32"):
            parse_buckets(wrong)


@pytest.mark.parametrize("shape, chosen", [
    ((17, 100, 100), "17x32x32"), ((40, 100, 100), "17x32x32"),           # the most frames it can fill
    ((16, 100, 100), "9x32x32"),
    ((16, 100, 60), "9x48x32"), ((9, 80, 70), "9x32x32"),                  # then the nearest shape
    ((17, 96, 64), "17x32x32"),                                            # but frames come first
    ((1, 500, 500), "1x64x64"), ((1, 30, 30), "1x32x32"),                  # then the nearest size
    ((8, 32, 32), "1x32x32")])                                             # too short for all others
def test_a_clip_goes_to_the_bucket_that_loses_least_of_it(shape, chosen):
    buckets = parse_buckets("1x32x32,9x48x32,17x32x32,9x32x32,1x64x64")
    assert str(choose_bucket(*shape, buckets)) == chosen
    assert choose_bucket(*shape, buckets[::-1]) == choose_bucket(*shape, buckets)


def test_a_clip_shorter_than_all_buckets_gets_none():
    assert choose_bucket(8, 32, 32, parse_buckets("9x32x32,17x32x32")) is None


@pytest.mark.parametrize("shapes, most, expected", [
    ([(32, 360, 640)] * 30 + [(10, 360, 640)], (17, 32, 32), "17x24x40"),    # wide clips, few pixels
    ([(32, 640, 360)] * 5, (17, 32, 32), "17x40x24"),
    ([(48, 512, 512)] * 9 + [(1, 300, 300)], (17, 32, 32), "17x32x32,1x32x32"),
    ([(9, 32, 32)] * 4, (17, 32, 32), "9x32x32"),                            # as they are
    ([(30, 16, 16)] * 4, (17, 32, 32), "17x16x16"),                          # never enlarged
    ([(30, 99, 99)] * 7 + [(12, 99, 99)] * 3, (17, 32, 32), "9x32x32"),      # long enough for three quarters
    ([(1, 480, 640)] * 3, (17, 32, 32), "1x24x32"),
    ([(48, 1080, 1920)] * 3, (121, 512, 768), "45x480x832")])
def test_a_bucket_is_chosen_from_the_clips(shapes, most, expected):
    vae = VAE if most[0] == 17 else SimpleNamespace(config=SimpleNamespace(stride=(4, 32, 32)))
    assert ",".join(map(str, clips.suggest_buckets(shapes, vae, most))) == expected
    for bucket in clips.suggest_buckets(shapes, vae, most):
        assert bucket.frames <= most[0] and bucket.height * bucket.width <= 1.3 * most[1] * most[2]


def test_a_folder_of_other_sizes_is_cut_to_the_chosen_bucket(tmp_path, capsys):
    for i, frames in enumerate((30, 30, 30, 4)):
        write(tmp_path / f"{i}.gif", pages(frames, 45, 80), text=str(i))
    training, held_out, bad = open_folder(tmp_path, VAE, 16, most=(17, 32, 32))
    assert [d.config.clip_shape for d in training + held_out] == [(17, 24, 40)] * 2
    assert [name for name, _ in bad] == ["3.gif"]
    assert training[0].batch(2, rng())[0].shape[2:] == (17, 24, 40)
    said = capsys.readouterr().out
    assert "clips are cut to 17x24x40 (frames x height x width), chosen from 4 files" in said


def test_an_illegal_bucket_names_the_nearest_legal_numbers(tmp_path):
    for text, match in (("16x32x32", "the bucket 16x32x32.* 13 or 17"),
                        ("17x36x32", "height of 36.* 32 or 40"),
                        ("17x32x33", "width of 33.* 32 or 40")):
        with pytest.raises(ValueError, match=match):
            check_folder(tmp_path, VAE, 16, parse_buckets(text))


def test_a_clip_is_scaled_to_cover_and_cut_to_the_middle(tmp_path):
    image = Image.new("RGB", (64, 32), "red")                              # scaled by a half: 32 x 16
    image.paste((0, 0, 200), (16, 0, 48, 32))                              # the middle, at its whole height
    write(tmp_path / "x.png", [image], text="blue")
    (data,), _, _ = open_folder(tmp_path, VAE, 16, parse_buckets("1x16x16"))
    video, _ = data.batch(1, rng())
    middle = torch.tensor([0.0, 0.0, 200.0])[:, None, None] / 127.5 - 1
    assert video.shape == (1, 3, 1, 16, 16)
    assert (video[0, :, 0, :, 2:14] - middle).abs().max() < 1e-6     # except the two pixels at each edge
    pixels = torch.arange(16 * 32 * 3).reshape(16, 32, 3).byte()           # no scaling: the same pixels
    write(tmp_path / "x.png", [Image.fromarray(pixels.numpy())], text="noise")
    (data,), _, _ = open_folder(tmp_path, VAE, 16, parse_buckets("1x8x32"))
    video, _ = data.batch(1, rng())
    assert torch.equal(((video[0, :, 0] + 1) * 127.5).round().byte(), pixels[4:12].permute(2, 0, 1))


# --- A folder ---------------------------------------------------------------------------------------------

def test_every_bad_file_is_named_with_its_reason(tmp_path, capsys):
    folder = tmp_path / "set"
    (folder / "inner").mkdir(parents=True)
    write(folder / "good.gif", pages(5), text="a red 7 moving left")
    write(folder / "inner/also_good.png", pages(1))
    for name in ("no_caption", "both_fine"):
        write(folder / f"{name}.png", pages(1))
    write(folder / "empty.png", pages(1), text=" \n")
    write(folder / "latin.png", pages(1))
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    write(folder / "words.png", pages(1), text="a purple 7")
    write(folder / "cut.gif", pages(5), text="a red 7")
    (folder / "cut.gif").write_bytes((folder / "cut.gif").read_bytes()[:-30])
    (folder / "foreign.jpg").write_text("<html>")
    (folder / "foreign.txt").write_text("a red 7")
    write(folder / "long.gif", pages(7), text="a red 7 moving left")
    write(folder / "high.png", pages(1, height=20), text="a red 7")
    write(folder / "wide.png", pages(1, width=5), text="a red 7")
    for name, mode in (("deep", "I;16"), ("bitmap", "RGB")):
        Image.new(mode, (16, 16)).save(folder / f"{name}.png", format="PNG" if name == "deep" else "BMP")
        (folder / f"{name}.txt").write_text("a red 7")
    (folder / "alone.txt").write_text("a red 7")
    write(tmp_path / "outside.png", pages(1), text="a red 7")
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "link.txt").write_text("a red 7")
    (folder / "dangling.gif").symlink_to(folder / "nothing.gif")
    write(folder / "secret.png", pages(1))
    (folder / "secret.txt").symlink_to(tmp_path / "outside.txt")
    for name in ("notes.md", ".hidden.png", "table.csv"):                 # ignored
        (folder / name).write_text("?")
    (folder / "folder.gif").mkdir()
    lines = [{"file_name": "inner/also_good.png", "text": "a blue 3"},
             {"file_name": "both_fine.png", "caption": "a red 7"}, "{not json", [1],
             {"text": "no file"}, {"file_name": "empty.png"}, {"file_name": "both_fine.png", "text": "again"},
             {"file_name": "gone.gif", "text": "a red 7"}, {"file_name": "../outside.png", "text": "a red 7"},
             {"file_name": str(folder / "good.gif"), "text": "a red 7"},
             {"file_name": "notes.md", "text": "a red 7"}, {"file_name": "", "text": "a red 7"}]
    text = "\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines)
    (folder / "metadata.jsonl").write_text(text + "\n\n")

    good, bad = check_folder(folder, VAE, 16, check_caption=lambda caption: tokenize([caption]))
    assert [(str(c.path.relative_to(folder)), c.caption, str(c.bucket)) for c in good] == [
        ("both_fine.png", "a red 7", "1x16x16"), ("good.gif", "a red 7 moving left", "5x16x16"),
        ("inner/also_good.png", "a blue 3", "1x16x16")]
    outside = "must lie inside the folder, and so must its caption file"
    expected = [
        ("alone.txt", "is a caption without a clip"), ("bitmap.png", "cannot be read to its end"),
        ("deep.png", "cannot be read to its end (it has more than 8 bits per colour)"),
        ("cut.gif", "cannot be read to its end"),
        ("dangling.gif", "does not exist"), ("empty.png", "has an empty caption"),
        ("foreign.jpg", "cannot be read to its end"), ("gone.gif", "does not exist"),
        ("high.png", "is 1x20x16 at 16 fps, and a height of 20 is not a multiple of 8: use 16 or 24"),
        ("latin.png", "has a caption that is not text in UTF-8"), ("link.png", outside),
        ("long.gif", "is 7x16x16 at 16 fps, and 7 frames cannot be encoded: use 4k+1, such as 5 or 9"),
        ("no_caption.png", "has no caption: write it into no_caption.txt"), ("secret.png", outside),
        ("wide.png", "is 1x16x5 at 16 fps, and a width of 5 is not a multiple of 8: use 8 or 16"),
        ("words.png", "unknown word 'purple'"),
        ("../outside.png", outside), (str(folder / "good.gif"), outside),
        ("notes.md", "does not end in"), (".", "does not end in"),
        ("metadata.jsonl line 7", "names both_fine.png a")]
    expected += [(f"metadata.jsonl line {n}", "is not of this form") for n in (3, 4, 5, 6)]
    assert [name for name, _ in bad] == sorted(name for name, _ in expected)
    for (name, reason), (_, start) in zip(bad, sorted(expected)):
        assert reason.startswith(start), name
    assert all(":" in reason for _, reason in bad)                         # each says what to do

    open_folder(folder, VAE, 16, check_caption=lambda caption: tokenize([caption]))
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].endswith(f"3 clips; {len(bad)} files or lines are skipped:")
    lines = {f"  {name} {reason}" for name, reason in bad}
    assert lines >= {line.split(" (and ")[0] for line in printed[1:]} and len(printed) - 1 < len(bad)
    more = [int(line.split(" (and ")[1].split()[0]) for line in printed if " more like it)" in line]
    assert len(printed) - 1 + sum(more) == len(bad)


def test_each_kind_of_reason_is_printed_once_with_its_count(capsys):
    bad = [(f"{name}.gif", f"has no caption: write it into {name}.txt") for name in ("a", "dance", "x2")]
    bad += [(f"{i}.gif", f"is shorter than every bucket, with {i} frames at 16 fps") for i in (3, 11)]
    bad += [(f"{text}.gif", f"the caption {text!r} has no embedding") for text in ("b", "two dogs")]
    clips.report_bad("set", [object()], [*bad, ("z.gif", "does not exist")])
    assert capsys.readouterr().out.splitlines() == [
        "set: 1 clips; 8 files or lines are skipped:",
        "  a.gif has no caption: write it into a.txt (and 2 more like it)",
        "  3.gif is shorter than every bucket, with 3 frames at 16 fps (and 1 more like it)",
        "  b.gif the caption 'b' has no embedding (and 1 more like it)", "  z.gif does not exist"]


def test_a_folder_without_a_usable_clip_says_so_after_the_reasons(tmp_path, capsys):
    write(tmp_path / "x.png", pages(1))
    with pytest.raises(ValueError, match="no usable clip"):
        open_folder(tmp_path, VAE, 16)
    assert "x.png has no caption" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no folder"):
        open_folder(tmp_path / "nowhere", VAE, 16)
    with pytest.raises(ValueError, match="above 0"):
        open_folder(tmp_path, VAE, 0)


def test_a_clip_shorter_than_every_bucket_is_bad(tmp_path):
    write(tmp_path / "x.gif", pages(4), text="short")
    write(tmp_path / "y.gif", pages(7), text="long enough")
    good, bad = check_folder(tmp_path, VAE, 16, parse_buckets("5x16x16,9x16x16"))
    assert [str(c.bucket) for c in good] == ["5x16x16"] and good[0].frames == 7
    assert bad == [("x.gif", "is shorter than every bucket, with 4 frames at 16 fps: "
                             "add a bucket of at most 4 frames")]


def test_metadata_and_text_files_give_the_same(tmp_path):
    texts, table = tmp_path / "texts", tmp_path / "table"
    for folder in (texts, table):
        folder.mkdir()
        for i in range(3):
            write(folder / f"{i}.gif", pages(5, first=i), text=f"clip  number\n{i} ")
    lines = [json.dumps({"file_name": f"./{i}.gif", "text": f"clip number {i}"}) for i in range(3)]
    (table / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8-sig")
    for path in table.glob("*.txt"):
        path.unlink()
    (a,), (held_a,), bad_a = open_folder(texts, VAE, 16)
    (b,), (held_b,), bad_b = open_folder(table, VAE, 16)
    assert bad_a == bad_b == []
    for one, other in ((a, b), (held_a, held_b)):
        (video, captions), (same, equal) = one.batch(8, rng()), other.batch(8, rng())
        assert torch.equal(video, same) and captions == equal
    (table / "0.txt").write_text("another")                                # metadata.jsonl comes first
    assert check_folder(table, VAE, 16)[0][0].caption == "clip number 0"


def test_captions_of_a_folder_are_read_without_opening_a_clip(tmp_path):
    for i, text in enumerate(["b", "a", " a\n", ""]):
        (tmp_path / f"{i}.mp4").write_bytes(b"")
        (tmp_path / f"{i}.txt").write_text(text)
    (tmp_path / "4.gif").write_bytes(b"")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "0.mp4", "text": "c"}\n{not json\n')
    assert captions_in(tmp_path) == ["a", "c"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no caption in .*: write x.txt next to x.mp4"):
        captions_in(tmp_path / "empty")
    with pytest.raises(ValueError, match="no folder"):
        captions_in(tmp_path / "nowhere")


# --- Batches ----------------------------------------------------------------------------------------------

def many(folder, count, frames=9):
    """Clip i has the caption "i" and frames of the levels i, i + 5, ..."""
    for i in range(count):
        write(folder / f"{i:02}.gif", pages(frames, first=3 * i), text=str(i))


def test_batches_follow_the_generator_in_clips_and_in_time(tmp_path):
    many(tmp_path, 5)
    (data,), _, _ = open_folder(tmp_path, VAE, 16, parse_buckets("5x16x16"))
    c = data.config
    assert (c.frames, c.size, c.fps) == (5, (16, 16), 16)
    (video, captions), (same, equal), (other, _) = (data.batch(20, rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(video, same) and captions == equal and not torch.equal(video, other)
    assert video.shape == (20, 3, 5, 16, 16) and video.dtype == torch.float32
    starts = set()
    for clip, caption in zip(video, captions):                             # a run of frames of that clip
        pixels = ((clip[0, :, 0, 0] + 1) * 127.5).round().int() - 3 * int(caption)
        start = pixels[0].item() // 5
        assert pixels.tolist() == [5 * (start + k) for k in range(5)]
        starts.add(start)
    assert starts == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("count, held", [(25, [9, 19]), (9, [8]), (2, [1]), (1, [])])
def test_held_out_clips_are_never_trained_on(tmp_path, count, held):
    many(tmp_path, count, frames=5)
    training, held_out, _ = open_folder(tmp_path, VAE, 16)
    seen = set(training[0].batch(40 * count, rng())[1])
    assert seen == {str(i) for i in range(count) if i not in held}
    assert len(held_out) == bool(held)
    for data in held_out:
        for flag in (False, True):
            assert set(data.batch(40, rng(), held_out=flag)[1]) == {str(i) for i in held}
    with pytest.raises(ValueError, match="for training"):
        training[0].batch(1, rng(), held_out=True)


def test_shapes_do_not_mix_and_long_ones_come_first(tmp_path):
    for i, (frames, width) in enumerate([(1, 16), (5, 16), (9, 24), (5, 16), (1, 16)]):
        write(tmp_path / f"{i}.gif", pages(frames, width=width), text=str(i))
    training, held_out, _ = open_folder(tmp_path, VAE, 16)
    assert [(d.config.frames, *d.config.size) for d in training] == [(9, 16, 24), (5, 16, 16), (1, 16, 16)]
    assert [set(d.batch(20, rng())[1]) for d in training] == [{"2"}, {"1", "3"}, {"0"}]
    assert [d.config.frames for d in held_out] == [1]


def test_clips_that_do_not_fit_into_memory_give_the_same_batch(tmp_path, monkeypatch):
    many(tmp_path, 4)
    reads = []
    read = clips.read_clip
    monkeypatch.setattr(clips, "read_clip", lambda path, *rest: reads.append(path.name) or read(path, *rest))
    size, batches = 3 * 9 * 16 * 16, []
    for limit, expected in ((0, 12), (size, 1 + 2 * 4), (10 * size, 3)):   # holds none of three, one, all
        reads.clear()
        (data,), _, _ = open_folder(tmp_path, VAE, 16, limit=limit)
        for clip in data.clips:
            for _ in range(4):
                data.cache.take(clip, 16)
        assert len(reads) == expected
        batches.append(data.batch(8, rng()))
    for video, captions in batches:
        assert torch.equal(video, batches[0][0]) and captions == batches[0][1]


def test_a_file_that_changes_during_training_is_found(tmp_path):
    many(tmp_path, 1)
    (data,), _, _ = open_folder(tmp_path, VAE, 16)
    write(tmp_path / "00.gif", pages(5))
    with pytest.raises(ValueError, match="changed"):
        data.batch(1, rng())
