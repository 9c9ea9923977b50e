"""Write files so that nobody ever finds half of one: under a temporary name first, renamed when complete.

A full disk, an exception or a killed process leaves what was there before.
"""

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def write_atomically(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary name beside `path`, with the same ending; at the end it is renamed to `path`.

        with write_atomically("figure.png") as partial:
            figure.savefig(partial)

    After an exception the temporary file is removed and `path` is as it was. The folder must exist. Raises OSError
    with `path` in its message, not the temporary name, when the file cannot be written.
    """
    target = Path(os.path.realpath(path))  # a link stays a link: the file that it points to is replaced
    partial = temporary_name(target)
    try:
        mode = target.stat().st_mode if target.exists() else usual_mode(target.parent)
        yield partial
        complete(partial, mode)
        os.replace(partial, target)
    except OSError as error:
        if error.filename not in (None, str(partial)) and not is_inside(error.filename, target.parent):
            raise  # about some other file
        reason = error.strerror or error if target.parent.is_dir() else f"there is no folder {target.parent}"
        raise OSError(f"{path} could not be written: {reason}") from error
    finally:
        with suppress(OSError):  # on Windows, for a file that is still open: the first error is the one to report
            partial.unlink(missing_ok=True)


@contextmanager
def write_files_atomically(folder: str | os.PathLike, outdated: Iterable[str] = ()) -> Iterator[Path]:
    """A fresh folder beside `folder`; at the end its files take the place of those in `folder`.

    For files that belong together, such as the shards of a checkpoint and their index: after an exception, also in
    the middle of the renaming, `folder` is as it was. (If a process is killed in that moment, or a file cannot be put
    back, the earlier files are in `.earlier` of the fresh folder, which then stays.) `outdated` are patterns of names
    (such as "model-*.safetensors") that an earlier set may hold and the new one may lack; those go, every other file
    stays. `folder` and its parents are made when they are missing. Raises OSError with `folder` in its message.
    """
    target = Path(os.path.realpath(folder))
    fresh = temporary_name(target)
    earlier = fresh / ".earlier"  # the files that are replaced, until all new ones are in their places
    is_safe = True  # to remove the fresh folder: it holds no earlier file that is wanted
    try:
        earlier.mkdir(parents=True)
        mode = usual_mode(fresh)
        yield fresh
        target.mkdir(exist_ok=True)
        new = sorted(path.name for path in fresh.iterdir() if path != earlier)
        for name in new:
            complete(fresh / name, mode)
        old = {path.name for pattern in outdated for path in target.glob(pattern)}
        old |= {name for name in new if (target / name).exists()}
        moves = [(target / name, earlier / name) for name in sorted(old)]
        try:
            move_all(moves + [(fresh / name, target / name) for name in new])
        except BaseException:
            is_safe = not any(earlier.iterdir())
            raise
    except OSError as error:
        if error.filename is not None and not is_inside(error.filename, target.parent):
            raise
        raise OSError(f"{folder} could not be written: {error.strerror or error}") from error
    finally:
        if is_safe:
            shutil.rmtree(fresh, ignore_errors=True)


@contextmanager
def write_folder_atomically(folder: str | os.PathLike) -> Iterator[Path]:
    """A fresh folder beside `folder`; at the end it is renamed to `folder`, which must be new or empty.

    For a folder with folders in it. After an exception nothing is left of it. Its parents are made when they are
    missing. Raises FileExistsError, before anything is written, for a folder that has something in it, and
    NotADirectoryError for a file.
    """
    target = Path(os.path.realpath(folder))
    if target.exists() and any(target.iterdir()):
        raise FileExistsError(f"{folder} has something in it, expected a new or empty folder: nothing was changed")
    fresh = temporary_name(target)
    try:
        fresh.mkdir(parents=True)
        yield fresh
        if target.exists():
            target.rmdir()
        fresh.rename(target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def temporary_name(path: Path) -> Path:
    """A hidden name beside `path` that no other process or thread takes; the ending, which names a format, is kept."""
    return path.with_name(f".{path.stem[:40]}-{secrets.token_hex(4)}{path.suffix}")


def usual_mode(folder: Path) -> int:
    """The permissions that a new file in `folder` gets: some libraries write files that only their owner may read."""
    probe = temporary_name(folder / "mode")
    probe.touch()
    try:
        return probe.stat().st_mode
    finally:
        probe.unlink()


def complete(partial: Path, mode: int) -> None:
    """Bring a written file to the disk, so that a power cut leaves the old file or the new one, never an empty one."""
    with open(partial, "rb+") as file:
        os.fsync(file.fileno())
    partial.chmod(mode)


def move_all(moves: list[tuple[Path, Path]]) -> None:
    """Rename each file; when one cannot be renamed, or at Ctrl-C, those before it go back."""
    started = []
    try:
        for source, destination in moves:
            started.append((source, destination))
            os.replace(source, destination)
    except BaseException:
        for source, destination in reversed(started):
            with suppress(OSError):  # the others go back even so
                if not source.exists():  # Ctrl-C may come when a file has just been renamed
                    os.replace(destination, source)
        raise


def is_inside(path: str | bytes | int, folder: Path) -> bool:
    return isinstance(path, str) and Path(path).is_relative_to(folder)
