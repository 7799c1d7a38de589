"""Location: one way to name files, on this disk and on an object store."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from data.storage import InputError, Location, StorageError


@pytest.fixture(params=["local", "store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """A folder that does not exist yet; the store is pyarrow's own, in memory."""
    if request.param == "local":
        return Location(tmp_path / "new folder")
    return Location(f"mock://bucket/{uuid.uuid4().hex}")


def test_what_is_written_is_read(folder: Location) -> None:
    file = folder / "COPPER TAIL" / "50% grün #1.txt"
    file.write_text("ala\n")
    assert file.read_text() == "ala\n"
    assert file.read_bytes() == b"ala\n"
    file.write_text("another")
    assert file.read_text() == "another"


def test_files_and_folders_are_told_apart(folder: Location) -> None:
    file = folder / "a" / "b.txt"
    assert not file.is_file()
    assert not folder.is_dir()
    file.write_bytes(b"")
    assert file.is_file()
    assert not file.is_dir()
    assert folder.is_dir()
    assert not folder.is_file()


def test_children_are_sorted_and_without_unfinished_files(folder: Location) -> None:
    for name in ("b.txt", "a/z.txt", "a/y.txt", ".part-1234-c.txt"):
        (folder / name).write_bytes(b"x")
    assert folder.children() == [folder / "a", folder / "b.txt"]
    assert folder.children(recursive=True) == [
        folder / name for name in ("a", "a/y.txt", "a/z.txt", "b.txt")
    ]


def test_a_missing_folder_has_no_children(folder: Location) -> None:
    assert folder.children() == []


def test_a_missing_file_is_an_error(folder: Location) -> None:
    with pytest.raises(FileNotFoundError):
        (folder / "none").read_bytes()


def test_delete_takes_files_folders_and_nothing(folder: Location) -> None:
    (folder / "a" / "b.txt").write_bytes(b"x")
    (folder / "c.txt").write_bytes(b"x")
    for name in ("a", "c.txt", "none"):
        (folder / name).delete()
    assert folder.children(recursive=True) == []


def test_upload_and_download(folder: Location, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 100_000)
    (folder / "a" / "file").upload(source)
    target = tmp_path / "somewhere" / "target"
    (folder / "a" / "file").download(target)
    (folder / "a" / "file").download(target)
    assert target.read_bytes() == source.read_bytes()
    assert os.listdir(target.parent) == ["target"]


def test_a_replaced_file_leaves_a_downloaded_one_as_it_was(tmp_path: Path) -> None:
    file = Location(tmp_path / "file")
    file.write_bytes(b"old")
    file.download(tmp_path / "copy")
    file.write_bytes(b"new")
    assert (tmp_path / "copy").read_bytes() == b"old"


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    """Another process replaces a file of 4 MB over and over; each reading is whole."""
    write = (
        "import sys; from data.storage import Location\n"
        "for i in range(40): Location(sys.argv[1]).write_bytes(bytes([i]) * 4_000_000)"
    )
    file = Location(tmp_path / "file")
    file.write_bytes(b"x" * 4_000_000)
    writer = subprocess.Popen([sys.executable, "-c", write, str(file)])
    while writer.poll() is None:
        content = file.read_bytes()
        assert len(content) == 4_000_000
        assert content.count(content[:1]) == len(content)
    assert writer.returncode == 0
    assert os.listdir(tmp_path) == ["file"]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    file = Location(tmp_path / "file")
    file.write_bytes(b"old")
    with pytest.raises(TypeError):
        file.write_bytes("text")  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == ["file"]
    assert file.read_bytes() == b"old"


def test_another_process_reaches_the_same_place(folder: Location) -> None:
    file = folder / "COPPER TAIL" / "1.jpg"
    assert pickle.loads(pickle.dumps(file)) == file
    assert hash(pickle.loads(pickle.dumps(file))) == hash(file)


def test_a_uri_whose_folder_has_blanks_can_come_first() -> None:
    """In a process that has not opened the bucket before, as on another node."""
    read = (
        "import pickle, sys; from data.storage import Location\n"
        "where = pickle.loads(bytes.fromhex(sys.argv[1]))\n"
        "where.write_bytes(b'x'); print(where, where.parent.name)"
    )
    where = Location("mock://bucket/COPPER TAIL") / "50% what?.jpg"
    argument = pickle.dumps(where).hex()
    done = subprocess.run(
        [sys.executable, "-c", read, argument], capture_output=True, text=True, check=True
    )
    assert done.stdout == "mock://bucket/COPPER TAIL/50% what?.jpg COPPER TAIL\n"


def test_a_query_stays_at_the_end() -> None:
    where = Location("s3://bucket/runs/?region=us-east-1") / "paper" / "study.yaml"
    assert str(where) == "s3://bucket/runs/paper/study.yaml?region=us-east-1"
    assert str(where.parent) == "s3://bucket/runs/paper?region=us-east-1"
    assert where.name == "study.yaml"


def test_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Location("a/../b").local == tmp_path / "b"
    assert Location("~/b").local == tmp_path / "b"
    assert Location(Location("b")) == Location(f"file://{tmp_path}/b")
    assert Location(f"file://{tmp_path}/b").is_local


def test_a_store_has_no_local_path() -> None:
    with pytest.raises(ValueError, match="mock://bucket/a is not a local path"):
        _ = Location("mock://bucket/a").local


@pytest.mark.parametrize("uri", ["gopher://host/a", "s3://", "://a", "s3://two words/a"])
def test_a_uri_that_means_nothing_is_named(uri: str) -> None:
    with pytest.raises(InputError, match="expected") as error:
        Location(uri)
    assert str(error.value).startswith(f"{uri}: ")
    assert "\n" not in str(error.value)


def test_a_key_in_a_uri_is_refused_and_not_repeated() -> None:
    with pytest.raises(InputError) as caught:
        Location("s3://AKIAXXXX:secret@bucket/runs")
    assert "secret" not in str(caught.value)
    assert "environment" in str(caught.value)


class Refusing(Location):
    """A folder that refuses so many writes, as a full disk does."""

    refusals = 0

    def _temporary(self) -> Path:
        if Refusing.refusals:
            Refusing.refusals -= 1
            raise OSError(errno.ENOSPC, "No space left on device")
        return super()._temporary()


def test_a_patient_location_tries_again_where_storage_refuses(tmp_path: Path) -> None:
    file = Refusing(tmp_path / "file", patience=30)
    Refusing.refusals = 2
    file.write_bytes(b"content")
    assert (tmp_path / "file").read_bytes() == b"content"


def test_an_impatient_location_does_not(tmp_path: Path) -> None:
    Refusing.refusals = 1
    with pytest.raises(OSError, match="No space left") as caught:
        Refusing(tmp_path / "file").write_bytes(b"content")
    assert not isinstance(caught.value, StorageError)


def test_patience_ends_with_one_line_that_names_the_file(tmp_path: Path) -> None:
    Refusing.refusals = 100
    file = Refusing(tmp_path / "file", patience=0.3)
    with pytest.raises(StorageError, match="No space left") as caught:
        file.write_bytes(b"content")
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)
    Refusing.refusals = 0


def test_patience_does_not_wait_for_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Location(tmp_path / "file", patience=1000).read_bytes()


def test_patience_goes_on_to_what_is_made_of_a_location(tmp_path: Path) -> None:
    run = Location(tmp_path, patience=7)
    assert (run / "a").parent.patience == 7
    assert pickle.loads(pickle.dumps(run)).patience == 7
    assert {each.patience for each in run.children()} <= {7}
