"""The files of a run's state: whole or not there, whatever is done to them and whenever their writer is killed."""

import resource
import shutil
from functools import partial

import pytest
import torch

from mull.training.states import LAST, NEXT, PREVIOUS, StateFiles, damage, keep_next, read_state, settle


def write(folder, step):
    StateFiles().save_checkpoint({"global_step": step, "weight": torch.full((300,), float(step))}, folder / NEXT)
    keep_next(folder)


@pytest.fixture
def folder(tmp_path):
    for step in (2, 4):
        write(tmp_path / "trainer", step)
    return tmp_path / "trainer"


def step_of(folder):
    return read_state(folder / LAST)["global_step"]


def test_a_state_is_an_ordinary_torch_file(folder):
    """Guards the format: torch and Lightning read it as they read their own."""
    state = StateFiles().load_checkpoint(folder / LAST)
    assert state["global_step"] == 4 and torch.equal(state["weight"], torch.full((300,), 4.0))
    assert torch.load(folder / PREVIOUS, weights_only=True)["global_step"] == 2
    assert damage(folder / LAST) is None and damage(folder / PREVIOUS) is None


def test_any_damage_is_seen_and_the_state_before_it_is_taken(folder, capsys):
    """Guards against flipped bits anywhere in the file, short files and long ones; it is told in one line."""
    sound = (folder / LAST).read_bytes()
    flips = [(place, bit) for place in range(0, len(sound), len(sound) // 60) for bit in (1, 128)]
    flips += [(len(sound) - back, 1) for back in range(1, 80)]
    damaged = [sound[:place] + bytes([sound[place] ^ bit]) + sound[place + 1 :] for place, bit in flips]
    damaged += [b"", sound[:10], sound[:-1], sound[: len(sound) // 2], sound + b"\0", bytes(len(sound))]
    before = (folder / PREVIOUS).read_bytes()
    for data in damaged:
        (folder / LAST).write_bytes(data)
        (folder / PREVIOUS).write_bytes(before)
        settle(folder)
        said = capsys.readouterr().out
        assert step_of(folder) == 2 and "last.ckpt was damaged" in said and said.count("\n") == 1
        assert not (folder / PREVIOUS).exists()


@pytest.mark.parametrize("previous", [None, b"", b"x" * 5000])
def test_without_a_whole_state_one_line_says_so(folder, previous):
    """Guards the end of the road: the file, what is wrong and the remedy, and nothing is removed."""
    (folder / LAST).write_bytes((folder / LAST).read_bytes()[:-5])
    (folder / PREVIOUS).unlink() if previous is None else (folder / PREVIOUS).write_bytes(previous)
    with pytest.raises(ValueError, match=r"last\.ckpt is damaged .*previous.*; remove .* to train anew") as told:
        settle(folder)
    assert "\n" not in str(told.value) and (folder / LAST).exists()


@pytest.mark.parametrize("exported", [False, True])
def test_a_state_of_an_earlier_mull_is_called_so(folder, exported):
    """Guards states without a checksum, whole as they are: they are not called damaged, and the remedy can be had."""
    (folder / PREVIOUS).unlink()
    torch.save({"global_step": 4}, folder / LAST)
    if exported:
        (folder.parent / "config.json").write_text("{}")
    remedy = rf"--from {folder.parent} --output NEW" if exported else "finish the run with that version"
    with pytest.raises(ValueError, match=rf"saved by an earlier mull, .*{remedy}, or remove .* to train anew") as told:
        settle(folder)
    assert "damaged" not in str(told.value) and step_of(folder) == 4


def test_a_writer_killed_before_any_operation_leaves_a_whole_state(tmp_path, reliability):
    """Guards saving itself: a kill before each file operation leaves the state before or the new one, no leftovers."""
    found = []
    for operation in range(100):
        folder = tmp_path / "trainer"
        shutil.rmtree(folder, ignore_errors=True)
        for step in (2, 4):
            write(folder, step)
        status = reliability.in_child(partial(write, folder, 6), folder, stop_before=operation)
        settle(folder)
        found.append(step_of(folder))
        assert {path.name for path in folder.iterdir()} <= {LAST, PREVIOUS}
        if status == 0:
            break
        assert status == reliability.KILLED
    assert found == sorted(found) and set(found) == {4, 6} and len(found) >= 6


def test_a_full_disk_leaves_the_last_state(folder):
    """Guards against "no space left", here by the system's limit of a file's size: one line, and no leftovers."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"next\.ckpt cannot be written .*make room, and type the same line") as told:
            write(folder, 6)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "Traceback" not in str(told.value) and {path.name for path in folder.iterdir()} == {LAST, PREVIOUS}
    settle(folder)
    assert step_of(folder) == 4
