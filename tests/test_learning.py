"""The video of a model that learns: every second frame of all samples, in the order of the steps."""

import pytest
from PIL import Image

from tools import learning


def test_samples_follow_each_other_in_the_order_of_their_steps(tmp_path):
    (tmp_path / "samples").mkdir()
    for step, grey in ((30, 200), (10, 50), (20, 120)):
        frames = [Image.new("L", (64, 40), grey + 2 * k) for k in range(5)]
        frames[0].save(tmp_path / "samples" / f"dit-{step:07}.gif", save_all=True, append_images=frames[1:])
    learning.main(tmp_path, tmp_path / "learning.gif")
    with Image.open(tmp_path / "learning.gif") as video:
        shades = []
        for number in range(video.n_frames):
            video.seek(number)
            page = video.convert("L")
            shades.append(page.getpixel((32, 50)))
            assert page.size == (64, 56)
            assert page.crop((0, 0, 64, 16)).getextrema()[0] < 64                   # the step is written
    assert len(shades) == 9
    assert all(abs(a - b) <= 4 for a, b in zip(shades, [50, 54, 58, 120, 124, 128, 200, 204, 208]))


def test_a_folder_without_samples_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no samples"):
        learning.main(tmp_path)
