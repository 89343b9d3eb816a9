"""Checkpoints: what was saved comes back, and what is damaged never does."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from topwork.learn import checkpoints as module
from topwork.learn.checkpoints import Checkpoints, read_checkpoint

TENSORS = {
    "a.weight": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)),
    "channels last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "step": torch.tensor(7.0),
    "count": torch.tensor(3),
    "sums": torch.tensor([1 / 3, 2.0], dtype=torch.float64),
    "marks": torch.tensor([True, False]),
    "none": torch.zeros(0, 4),
    "odd": torch.tensor([float("nan"), float("inf"), -0.0]),
}
FACTS = {"phase": 2, "epochs": [{"loss": 0.1, "validation_loss": None}], "name": "Größe \N{DOG}"}


def three(folder: Path) -> tuple[Checkpoints, list[Path]]:
    """Return a folder after three saves, and its files."""
    saving = Checkpoints(folder)
    for number in range(3):
        saving.save({"number": torch.tensor([number])}, {"number": number})
    return saving, saving.files()


def bytes_of(tensor: torch.Tensor) -> tuple:
    return tensor.dtype, tensor.shape, tensor.contiguous().numpy().tobytes()


def test_what_was_saved_comes_back_to_the_byte(tmp_path: Path):
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    Checkpoints(tmp_path / "made" / "when needed").save({**TENSORS, "p": parameter}, FACTS)
    found = Checkpoints(tmp_path / "made" / "when needed").newest()
    assert found is not None
    assert found.facts == FACTS
    assert found.tensors.keys() == {*TENSORS, "p"}
    for name, tensor in TENSORS.items():
        assert bytes_of(found.tensors[name]) == bytes_of(tensor), name
    assert not found.tensors["p"].requires_grad


@settings(max_examples=25, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    ),
    st.integers(0, 5),
)
def test_any_plain_data_comes_back(tmp_path_factory: pytest.TempPathFactory, value, size: int):
    saving = Checkpoints(tmp_path_factory.mktemp("c"))
    saving.save({"t": torch.arange(size)}, {"value": value})
    found = saving.newest()
    assert found is not None
    assert found.facts == {"value": value}
    assert torch.equal(found.tensors["t"], torch.arange(size))


def test_tensors_saved_do_not_follow_the_training(tmp_path: Path):
    tensor = torch.zeros(3)
    saving = Checkpoints(tmp_path)
    saving.save({"t": tensor}, {})
    tensor += 1
    found = saving.newest()
    assert found is not None
    assert torch.equal(found.tensors["t"], torch.zeros(3))


def test_no_folder_and_an_empty_one_hold_none(tmp_path: Path):
    assert Checkpoints(tmp_path / "none").newest() is None
    assert not (tmp_path / "none").exists()
    assert Checkpoints(tmp_path).newest() is None


def test_the_two_newest_are_kept_and_numbers_go_on(tmp_path: Path):
    _, files = three(tmp_path)
    assert [file.name[:7] for file in files] == ["000002-", "000003-"]
    assert sorted(tmp_path.iterdir()) == files  # no temporary files either
    later = Checkpoints(tmp_path)
    later.save({}, {"number": 3})
    assert [file.name[:7] for file in later.files()] == ["000003-", "000004-"]
    found = later.newest()
    assert found is not None
    assert found.facts == {"number": 3}


def test_other_files_are_left_alone(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes(b"mine")
    (tmp_path / "tmpabc.tmp").write_bytes(b"half a checkpoint")
    saving, _ = three(tmp_path)
    assert len(list(tmp_path.iterdir())) == 5
    found = saving.newest()
    assert found is not None
    assert found.facts == {"number": 2}


def flip(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


DAMAGES = {
    "first byte flipped": lambda data: flip(data, 0),
    "header flipped": lambda data: flip(data, 20),
    "last byte flipped": lambda data: flip(data, len(data) - 1),
    "truncated": lambda data: data[:-1],
    "halved": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "longer": lambda data: data + b"\0",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_is_named_and_the_one_before_is_taken(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    saving, (before, newest) = three(tmp_path)
    newest.write_bytes(DAMAGES[damage](newest.read_bytes()))
    with caplog.at_level(logging.WARNING, "topwork"):
        found = saving.newest()
    assert found is not None
    assert found.facts == {"number": 1}
    assert torch.equal(found.tensors["number"], torch.tensor([1]))
    (message,) = caplog.messages
    assert newest.with_suffix(".damaged").exists()
    assert str(newest) in message
    assert "damaged" in message
    assert str(before) not in message


def test_every_flipped_byte_shows(tmp_path: Path):
    _, (_, newest) = three(tmp_path)
    data = newest.read_bytes()
    assert read_checkpoint(newest) is not None
    for place in range(len(data)):
        newest.write_bytes(flip(data, place))
        assert read_checkpoint(newest) is None, place


def test_if_all_are_damaged_there_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    saving, files = three(tmp_path)
    for file in files:
        file.write_bytes(file.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING, "topwork"):
        assert saving.newest() is None
    assert [any(str(file) in text for text in caplog.messages) for file in files] == [True, True]


def test_a_checkpoint_that_cannot_be_read_is_passed_over(tmp_path: Path):
    saving, (_, newest) = three(tmp_path)
    newest.unlink()
    newest.mkdir()
    found = saving.newest()
    assert found is not None
    assert found.facts == {"number": 1}


def test_a_whole_file_under_a_wrong_name_or_without_facts_is_none(tmp_path: Path):
    _, (before, newest) = three(tmp_path)
    newest.write_bytes(before.read_bytes())
    assert read_checkpoint(newest) is None
    for data in (safetensors.torch.save({"t": torch.ones(1)}), b"no safetensors at all"):
        file = tmp_path / f"000009-{hashlib.sha256(data).hexdigest()}.safetensors"
        file.write_bytes(data)
        assert read_checkpoint(file) is None


def test_a_damaged_one_does_not_push_out_the_whole_one_before_it(tmp_path: Path):
    _, (_, newest) = three(tmp_path)
    newest.write_bytes(b"")
    resumed = Checkpoints(tmp_path)
    assert resumed.newest() is not None
    resumed.save({}, {"number": 9})
    latest = resumed.files()[-1]
    latest.write_bytes(b"")
    found = Checkpoints(tmp_path).newest()
    assert found is not None
    assert found.facts == {"number": 1}


def test_if_saving_fails_those_before_are_still_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    saving, files = three(tmp_path)
    contents = [file.read_bytes() for file in files]

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        saving.save({"t": torch.ones(4)}, {})
    assert sorted(tmp_path.iterdir()) == files
    assert [file.read_bytes() for file in files] == contents


def test_saving_is_due_when_it_takes_a_twentieth_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    now = [100.0]

    def write(path: Path, data: bytes) -> None:
        now[0] += 2.0  # seconds that it takes
        path.write_bytes(data)

    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(module, "write_atomically", write)
    saving = Checkpoints(tmp_path, saved_at=100.0)
    assert saving.due()  # nothing is known yet
    saving.save({}, {})
    assert (saving.saved_at, saving.seconds) == (102.0, 2.0)
    now[0] = 102.0 + 39.9
    assert not saving.due()
    now[0] = 102.0 + 40.1
    assert saving.due()
