"""Damaged, hostile and nonsensical files: noticed before anything is built, and named in one line.

A few of each kind; `tests/faults` has hundreds."""

import copy
import os
import random
import zipfile
from collections import Counter

import pytest
import torch
from equality import same

from minltx.files import check_zip, clear_leftovers, put_in_place, read_torch, write_torch
from minltx.toy import load_toy
from minltx.toy.model import SHIPPED, load_checkpoint, save_checkpoint
from minltx.training import shards

PLAIN = {"numbers": torch.arange(1000.0), "words": ["a", "b"], "none": None}


def flip(path, bit, target):
    """A copy of a file with one bit flipped."""
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    target.write_bytes(content)
    return target


def test_values_are_the_same_if_their_bits_are():
    nan = float("nan")
    for value in (torch.tensor([nan, 0.0]), torch.tensor(1), torch.tensor(True), torch.ones(2, 3).t(), nan,
                  0.0, "a", {"x": [1, (nan, None)]}):
        assert same(value, copy.deepcopy(value))
    for a, b in ((torch.zeros(2), -torch.zeros(2)), (0.0, -0.0), (nan, 0.0), (1, True), (1, 1.0),
                 (torch.ones(2), torch.ones(2, 1)), (torch.ones(2), torch.ones(2).double()),
                 ({"x": 1}, {"y": 1}), ([1], (1,)), ([1], [1, 1])):
        assert not same(a, b)


def test_every_flipped_bit_is_noticed_or_outside_of_the_content(tmp_path):
    """Some bytes of a zip say nothing: times, padding, the copies of what the list at its end holds."""
    write_torch(tmp_path / "a.pt", PLAIN)
    assert same(read_torch(tmp_path / "a.pt"), PLAIN)
    choose, harmless = random.Random(0), 0
    bits = [choose.randrange(8 * (tmp_path / "a.pt").stat().st_size) for _ in range(300)]
    for bit in bits:
        try:
            harmless += same(read_torch(flip(tmp_path / "a.pt", bit, tmp_path / "b.pt")), PLAIN)
        except ValueError:
            continue
    noticed = len(bits) - harmless
    assert noticed > 150


def written(tmp_path, values, save=torch.save):
    save(values, tmp_path / "x.pt")
    return tmp_path / "x.pt"


class Code:
    """Pickled, it is a call of os.mkdir."""

    def __reduce__(self):
        return os.mkdir, ("proof",)


class Long:
    """Pickled, it is a bytearray of three billion zeros, which torch's own reader makes."""

    def __reduce__(self):
        return bytearray, (3 * 10**9,)


@pytest.mark.parametrize("value, says", [(Code(), "mkdir"), (Long(), "bytearray"), (Counter("aa"), "Counter"),
                                         (torch.ones(3).to_sparse(), "sparse"),
                                         (torch.nn.Linear(1, 1), "Linear"), (torch.float32, "float32")])
def test_a_file_holds_tensors_and_plain_values_and_nothing_else(tmp_path, monkeypatch, value, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"it holds .*{says}.*, not tensors and plain values"):
        read_torch(written(tmp_path, {"x": value}))
    assert not (tmp_path / "proof").exists()


def test_a_zip_that_unpacks_to_more_than_it_is_is_refused_before_that(tmp_path):
    """Compressed, or with two names for one place; and a zip with two pickles, of which each reader takes
    another."""
    whole = written(tmp_path, PLAIN)
    with zipfile.ZipFile(whole) as a, zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as b:
        for entry in a.infolist():
            b.writestr(entry.filename, a.read(entry))
        b.writestr("archive/data/9", bytes(10**7))
    with pytest.raises(ValueError, match="unpack to more than it is"):
        read_torch(tmp_path / "b.pt")
    with zipfile.ZipFile(whole, "a") as a:
        a.writestr("archive/DATA.PKL", b"")
    with pytest.raises(ValueError, match="not a file of torch"):
        read_torch(whole)
    with zipfile.ZipFile(SHIPPED) as file, pytest.raises(ValueError, match="unpack to more"):
        check_zip(file, SHIPPED.stat().st_size // 2)


def changed_toy(tmp_path, change):
    """The shipped toy's file with a change to its dictionary."""
    stored = torch.load(SHIPPED, weights_only=True)
    change(stored)
    return written(tmp_path, stored)


def put(part, name, value):
    return lambda stored: stored["config"][part].__setitem__(name, value)


NAN = float("nan")


@pytest.mark.parametrize("change, says", [
    (put("vae", "encoder_blocks", [["down", [0, 2, 2], 64]]), "encoder_blocks"),
    (put("vae", "decoder_blocks", [["res", 10**9]]), "decoder_blocks"),
    (put("vae", "decoder_blocks", [["res", 60000]]), "asks for 60"),
    (put("dit", "depth", 999), "asks for 10"), (put("dit", "depth", NAN), "depth"),
    (put("dit", "theta", NAN), "theta.* is nan"), (put("dit", "heads", 3), "heads"),
    (put("data", "fps", 0), "fps.* is 0"), (put("dit", "width", 65536), "is not"),
    (put("dit", "stride", [4, 8, 16]), "stride"), (put("data", "size", "x"), "size"),
    (lambda stored: stored["model"]["text.positions"].fill_(NAN), "text.positions holds numbers that are"),
    (lambda stored: stored["model"].update({"x": torch.ones(1)}), "x is unknown"),
    (lambda stored: stored["model"].pop("text.positions"), "text.positions is missing"),
    (lambda stored: stored["model"].update({"text.positions": torch.zeros(1).expand(10**6, 9)}), "is not"),
    (lambda stored: stored.update(model=[1]), "holds no model"),
    (lambda stored: stored.update(config="x"), "holds no model")])
def test_a_model_that_cannot_be_is_refused_before_it_is_built(tmp_path, monkeypatch, change, says):
    path, real = changed_toy(tmp_path, change), []
    new = torch.nn.Parameter.__new__

    def spy(cls, data=None, requires_grad=True):
        real.append(data.device.type)
        return new(cls, data, requires_grad)

    monkeypatch.setattr(torch.nn.Parameter, "__new__", spy)
    with pytest.raises(ValueError, match=says) as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value) and set(real) <= {"meta"}


def test_the_parts_of_three_processes_are_the_tensors(tmp_path):
    """Cut unevenly along the first axis, one of them empty. A missing or older part is named."""
    tree = {"a": {"w": torch.randn(4, 3), "n": [torch.tensor(2.0)]}, "plain": "x"}
    for rank, rows in enumerate((slice(0, 2), slice(2, 4), slice(4, 4))):
        own = {"a/w": tree["a"]["w"][rows]} | ({"a/n/0": tree["a"]["n"][0]} if rank == 0 else {})
        write_torch(tmp_path / "shards-0-2" / f"{rank}.pt", {
            "format": shards.FORMAT, "part": rank, "parts": 3, "state": {"step": 2}, "tensors": own})
    (tmp_path / "run.json").write_text('{"folder": "shards-0-2", "parts": 3}')
    empty = {"a": {"w": torch.zeros(4, 3), "n": [torch.zeros(())]}, "plain": "y"}
    shards.fill(empty, shards.read_parts(tmp_path / "run.json"))
    assert same(empty["a"], tree["a"]) and empty["plain"] == "y"
    with pytest.raises(ValueError, match=r"a/w has the shape \(4, 3\), not \(5, 3\)"):
        shards.fill({"a": {"w": torch.zeros(5, 3)}}, shards.read_parts(tmp_path / "run.json"))
    (tmp_path / "run.json").write_text('{"folder": "shards-0-2", "parts": 2}')
    with pytest.raises(ValueError, match="0.pt is missing or damaged .*another checkpoint"):
        shards.read_parts(tmp_path / "run.json")
    (tmp_path / "run.json").write_text('{"folder": "../elsewhere", "parts": 3}')
    with pytest.raises(ValueError, match="names no folder of parts"):
        shards.read_parts(tmp_path / "run.json")


def test_weights_beyond_float16_are_stored_as_they_are(tmp_path):
    model = load_toy()
    model.dit.proj_out.bias.data[0] = 1e6
    save_checkpoint(tmp_path / "m.pt", model, half=True)
    assert load_checkpoint(tmp_path / "m.pt")[0].dit.proj_out.bias[0] == 1e6


def test_leftovers_of_killed_processes_are_cleared_and_nothing_else(tmp_path):
    """A number that no process has; this process's own; other hidden files."""
    for name in (".checkpoint.part-99999999.pt", f".model.part-{os.getpid()}.pt", ".gitignore",
                 "a.part-1.pt"):
        (tmp_path / name).touch()
    clear_leftovers(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {f".model.part-{os.getpid()}.pt", ".gitignore",
                                                    "a.part-1.pt"}
    with pytest.raises(KeyError):
        put_in_place(tmp_path / "new.pt", lambda part: {}[part])
    assert not (tmp_path / "new.pt").exists()
