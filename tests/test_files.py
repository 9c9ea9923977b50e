"""Files are written whole or not at all."""

import os
import stat
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from paligemma import files
from paligemma.files import write_atomically, write_files_atomically


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_written_and_renamed(tmp_path):
    path = tmp_path / "figure.png"
    with write_atomically(path) as partial:
        assert partial.suffix == ".png" and partial.parent == tmp_path and partial != path
        partial.write_text("new", encoding="utf-8")
        assert not path.exists()
    assert path.read_text(encoding="utf-8") == "new" and names(tmp_path) == ["figure.png"]
    with write_atomically(str(path)) as partial:
        partial.write_text("newer", encoding="utf-8")
    assert path.read_text(encoding="utf-8") == "newer" and names(tmp_path) == ["figure.png"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), OSError(28, "No space left on device")])
@pytest.mark.parametrize("existed", [True, False])
def test_after_an_exception_nothing_has_changed(tmp_path, error, existed):
    path = tmp_path / "state.pt"
    if existed:
        path.write_text("old", encoding="utf-8")
    with pytest.raises(type(error)) as caught, write_atomically(path) as partial:
        partial.write_text("half", encoding="utf-8")
        raise error
    assert names(tmp_path) == (["state.pt"] if existed else [])
    assert not existed or path.read_text(encoding="utf-8") == "old"
    if isinstance(error, OSError):
        assert str(caught.value) == f"{path} could not be written: No space left on device"


def test_messages_name_the_file_that_was_asked_for(tmp_path):
    path = tmp_path / "missing" / "a.json"
    with (
        pytest.raises(OSError, match="a.json could not be written: there is no folder .*missing"),
        write_atomically(path),
    ):
        raise AssertionError("not reached: the folder is looked at first")
    with pytest.raises(FileNotFoundError, match="other.txt"), write_atomically(tmp_path / "a.json"):
        Path("/nowhere/other.txt").read_text(encoding="utf-8")  # an error about another file is not renamed
    with (
        pytest.raises(OSError, match=r"a\.json could not be written: No such file"),
        write_atomically(tmp_path / "a.json"),
    ):
        pass  # nothing was written
    assert names(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="links and permissions as POSIX has them")
def test_links_and_permissions_stay(tmp_path):
    real, link = tmp_path / "real.txt", tmp_path / "link.txt"
    real.write_text("old", encoding="utf-8")
    real.chmod(0o640)
    link.symlink_to(real)
    with write_atomically(link) as partial:
        partial.write_text("new", encoding="utf-8")
    assert link.is_symlink() and real.read_text(encoding="utf-8") == "new"
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    with write_atomically(tmp_path / "w.safetensors") as partial:  # safetensors itself writes files of mode 600
        save_file({"a": torch.zeros(2)}, partial)
    (tmp_path / "usual").touch()
    assert (tmp_path / "w.safetensors").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_set_of_files_replaces_the_earlier_set(tmp_path):
    folder = tmp_path / "deep" / "model"
    with write_files_atomically(folder) as fresh:
        for name in ("a.json", "model-1.bin", "model-2.bin"):
            (fresh / name).write_text("old", encoding="utf-8")
        assert not folder.exists()
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    with write_files_atomically(folder, outdated=("model-*.bin",)) as fresh:
        for name in ("a.json", "model-1.bin"):
            (fresh / name).write_text("new", encoding="utf-8")
    assert {name: (folder / name).read_text(encoding="utf-8") for name in names(folder)} == {
        "a.json": "new",
        "model-1.bin": "new",
        "notes.txt": "mine",
    }
    assert names(tmp_path / "deep") == ["model"]


@pytest.mark.parametrize("fails_at", range(6))
def test_a_failed_rename_puts_the_earlier_set_back(tmp_path, monkeypatch, fails_at):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("a.json", "model-1.bin", "model-2.bin"):
        (folder / name).write_text("old", encoding="utf-8")
    rename, calls = os.replace, []

    def replace(source, destination):
        calls.append(source)
        if len(calls) == fails_at + 1:
            raise PermissionError(13, "the file is open in another program", str(destination))
        rename(source, destination)

    monkeypatch.setattr(files.os, "replace", replace)
    message = r"model could not be written: the file is open in another program"
    with pytest.raises(OSError, match=message), write_files_atomically(folder, outdated=("model-*.bin",)) as fresh:
        for name in ("a.json", "b.json", "model-1.bin"):
            (fresh / name).write_text("new", encoding="utf-8")
    assert len(calls) > fails_at
    assert names(folder) == ["a.json", "model-1.bin", "model-2.bin"]
    assert all(path.read_text(encoding="utf-8") == "old" for path in folder.iterdir())
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("stops_at", range(5))
@pytest.mark.parametrize("is_renamed", [False, True])
def test_ctrl_c_between_the_renames_puts_the_earlier_set_back(tmp_path, monkeypatch, stops_at, is_renamed):
    """Python raises KeyboardInterrupt between two instructions: just before a file is renamed, or just after."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("a.json", "b.json"):
        (folder / name).write_text("old", encoding="utf-8")
    rename, calls = os.replace, []

    def replace(source, destination):
        calls.append(source)
        if len(calls) != stops_at + 1:
            return rename(source, destination)
        if is_renamed:
            rename(source, destination)
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", replace)
    with pytest.raises(KeyboardInterrupt), write_files_atomically(folder) as fresh:
        for name in ("a.json", "b.json", "c.json"):
            (fresh / name).write_text("new", encoding="utf-8")
    assert {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()} == {
        "a.json": "old",
        "b.json": "old",
    }
    assert names(tmp_path) == ["model"]


def test_earlier_files_that_cannot_go_back_are_kept(tmp_path, monkeypatch):
    """The new files cannot be moved in, and one of the old ones cannot be moved back: it is not thrown away."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("a.json", "b.json"):
        (folder / name).write_text("old", encoding="utf-8")
    rename, calls = os.replace, []

    def replace(source, destination):
        calls.append(source)
        if len(calls) in (3, 4):  # the first new file on its way in, then b.json on its way back
            raise PermissionError(13, "the file is open in another program", str(destination))
        rename(source, destination)

    monkeypatch.setattr(files.os, "replace", replace)
    with pytest.raises(OSError, match="model could not be written"), write_files_atomically(folder) as fresh:
        for name in ("a.json", "b.json"):
            (fresh / name).write_text("new", encoding="utf-8")
    assert names(folder) == ["a.json"]
    (kept,) = tmp_path.glob(".*/.earlier/*")
    assert kept.name == "b.json" and kept.read_text(encoding="utf-8") == "old"
