"""Where files live: a local folder, a network share, or an object store (s3://, gs://).

One class for all of them, through pyarrow's file systems, so that no other module asks where
it is. Files are read whole and replaced whole: locally under a temporary name that is then
renamed, on an object store by one PUT. A reader never sees half a file.

Storage may refuse for a while: a full disk, a share or an object store that does not answer. A
patient location tries again until its patience is over.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger(__name__)


class InputError(Exception):
    """Bad input: one line that names the file or key, what was found and what was expected."""


def reason_of(error: BaseException) -> str:
    """What an error says, in one line, without its number and file."""
    said = getattr(error, "strerror", None) or str(error).strip()
    return said.splitlines()[0] if said else type(error).__name__


def require_text(path: str) -> None:
    """Records and reports name files, and Arrow opens them by it: the name must be one in UTF-8.

    Raises:
        InputError: it is not.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        raise InputError(f"{shown}: its name is not UTF-8; expected one that is") from None


class StorageError(OSError):
    """Storage has refused for longer than a patient location waits; one line says what to do."""


def _patiently(
    method: Callable[Concatenate[Location, P], T],
) -> Callable[Concatenate[Location, P], T]:
    """Repeat the method while storage refuses and the location is patient."""

    @functools.wraps(method)
    def patient(self: Location, *args: P.args, **kwargs: P.kwargs) -> T:
        deadline, pause = time.monotonic() + self.patience, 0.25
        while True:
            try:
                return method(self, *args, **kwargs)
            except OSError as refusal:
                error = _named(refusal, self)
                if not (self.patience and _may_pass(error)):
                    raise error from None
                reason = reason_of(error)
                if time.monotonic() > deadline:
                    raise StorageError(
                        f"{self}: storage has refused for {self.patience:g} s ({reason}); "
                        f"expected it to work: mend it, or free space"
                    ) from None
                log.warning("%s: storage refuses (%s), trying again", self, reason)
            time.sleep(pause)
            pause = min(2 * pause, 5.0)

    return patient


def _named(error: OSError, where: Location) -> OSError:
    """An object store's errors have neither number nor file: as one that has both."""
    if where.is_local or type(error) is not OSError or error.errno is not None:
        return error
    return OSError(errno.EIO, reason_of(error), str(where))


def _may_pass(error: OSError) -> bool:
    """Whether trying again may help."""
    if isinstance(error, StorageError | FileNotFoundError | PermissionError):
        return False
    return error.errno is None or error.errno in _PASSING


_PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN}
_PASSING |= {errno.EROFS, errno.EBUSY, errno.ENOTCONN, errno.ECONNRESET, errno.EHOSTUNREACH}


class Location:
    """A file or folder, local or on an object store.

    Args:
        where: a path (``file://`` is one too), or a URI that pyarrow knows
            (``s3://bucket/key?region=...``, ``gs://``).
        patience: for how many seconds to try again where storage refuses; so for all locations
            that are made from this one.

    Raises:
        InputError: the URI cannot be parsed, its scheme is not known, or the name is not UTF-8.
    """

    _root: str  # "" where local, else the URI with {} for the path
    path: str
    patience: float

    def __init__(self, where: str | Path | Location, patience: float = 0.0):
        self.patience = patience
        if isinstance(where, Location):
            self._root, self.path = where._root, where.path
            return
        text = str(where).removeprefix("file://")
        if "://" not in text:
            self._root, self.path = "", os.path.abspath(os.path.expanduser(text))
            require_text(self.path)
            return
        require_text(text)
        base, _, query = text.partition("?")
        scheme, _, rest = base.partition("://")
        self._root = f"{scheme}://" + "{}" + (f"?{query}" if query else "")
        self.path = rest.rstrip("/")
        if "@" in rest.partition("/")[0]:  # it would be in logs and records
            raise InputError(
                f"{scheme}://...: found a user or a key in the URI, expected it in the environment"
            )
        if not self.path:
            raise InputError(f"{text}: names no bucket; expected {scheme}://BUCKET/FOLDER")
        self._file_system()

    @property
    def is_local(self) -> bool:
        """Whether the path can be given to ``open``."""
        return not self._root

    @property
    def local(self) -> Path:
        """The path of a local location.

        Raises:
            ValueError: it lies on an object store.
        """
        if not self.is_local:
            raise ValueError(f"{self} is not a local path")
        return Path(self.path)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rsplit("/", 1)[-1]

    @property
    def parent(self) -> Location:
        """The folder that holds it."""
        return self._at(self.path.rsplit("/", 1)[0] or "/")

    def __str__(self) -> str:
        return self._root.format(self.path) if self._root else self.path

    def __repr__(self) -> str:
        return f"Location({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Location) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __truediv__(self, name: str) -> Location:
        return self._at(f"{self.path.rstrip('/')}/{name}")

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self._root, self.path, self.patience)

    @_patiently
    def is_file(self) -> bool:
        if self.is_local:
            return self.local.is_file()
        return bool(self._info().is_file)

    @_patiently
    def is_dir(self) -> bool:
        if self.is_local:
            return self.local.is_dir()
        from pyarrow.fs import FileType

        return bool(self._info().type == FileType.Directory)

    @_patiently
    def read_bytes(self) -> bytes:
        """The whole file.

        Raises:
            FileNotFoundError: there is none.
        """
        if self.is_local:
            return self.local.read_bytes()
        with self._file_system().open_input_stream(self.path) as stream:
            return bytes(stream.read())

    def read_text(self) -> str:
        return self.read_bytes().decode("utf-8")

    @_patiently
    def write_bytes(self, content: bytes) -> None:
        """Replace the whole file at once; folders on the way are made."""
        if not self.is_local:
            with self._open_for_writing() as stream:
                stream.write(content)
            return
        temporary = self._temporary()
        try:
            temporary.write_bytes(content)
            _rename(temporary, self.local)
        finally:
            with contextlib.suppress(OSError):  # it would hide what happened
                temporary.unlink(missing_ok=True)

    def write_text(self, content: str) -> None:
        self.write_bytes(content.encode("utf-8"))

    @_patiently
    def download(self, destination: Path) -> None:
        """Copy the file to a local path, at once.

        On the same disk that is a hard link; the two must then never be written in place.
        """
        target = Location(destination)
        temporary = target._temporary()
        try:
            if self.is_local:
                _link_or_copy(self.local, temporary)
            else:
                with self._file_system().open_input_stream(self.path) as source:
                    with temporary.open("wb") as sink:
                        shutil.copyfileobj(source, sink, 1 << 22)
            os.replace(temporary, destination)
        finally:
            temporary.unlink(missing_ok=True)

    @_patiently
    def upload(self, source: Path) -> None:
        """Replace the file by a local one, at once."""
        if not self.is_local:
            with source.open("rb") as stream:
                with self._open_for_writing() as sink:
                    shutil.copyfileobj(stream, sink, 1 << 22)
            return
        temporary = self._temporary()
        try:
            shutil.copyfile(source, temporary)
            _rename(temporary, self.local)
        finally:
            temporary.unlink(missing_ok=True)

    @_patiently
    def children(self, recursive: bool = False) -> list[Location]:
        """Files and folders in it, sorted by path; none where it does not exist.

        Unfinished temporary files are left out.
        """
        from pyarrow.fs import FileSelector

        selector = FileSelector(self.path, recursive=recursive, allow_not_found=True)
        try:
            found = self._file_system().get_file_info(selector)
        except PermissionError as error:  # Arrow's names no file
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self)) from error
        paths = sorted(info.path for info in found)
        return [self._at(p) for p in paths if not p.rsplit("/", 1)[-1].startswith(_TEMPORARY)]

    @_patiently
    def delete(self) -> None:
        """Remove the file, or the folder with all that is in it, if it is there."""
        if self.is_dir():
            self._file_system().delete_dir(self.path)
        elif self.is_file():
            self._file_system().delete_file(self.path)

    def _at(self, path: str) -> Location:
        return _restored(self._root, path, self.patience)

    def _temporary(self) -> Path:
        self.local.parent.mkdir(parents=True, exist_ok=True)
        return self.local.with_name(f"{_TEMPORARY}{uuid.uuid4().hex[:8]}-{self.name}")

    def _info(self) -> Any:
        return self._file_system().get_file_info(self.path)

    def _open_for_writing(self) -> Any:
        system = self._file_system()
        try:
            return system.open_output_stream(self.path)
        except FileNotFoundError:  # not an object store: its folders do not make themselves
            system.create_dir(self.parent.path, recursive=True)
            return system.open_output_stream(self.path)

    def _file_system(self) -> FileSystem:
        from pyarrow.fs import FileSystem, LocalFileSystem

        if self.is_local:
            return LocalFileSystem()
        # One client a bucket: its region is looked up once, and a key may hold blanks, "%", "?".
        bucket = self._root.format(self.path.partition("/")[0])
        if bucket not in _FILE_SYSTEMS:
            try:
                _FILE_SYSTEMS[bucket] = FileSystem.from_uri(bucket)[0]
            except (ValueError, OSError) as error:
                raise InputError(
                    f"{self}: {reason_of(error)}; expected a folder or a URI"
                ) from None
        return _FILE_SYSTEMS[bucket]


def _restored(root: str, path: str, patience: float) -> Location:
    """Not from its URI: the path of an object that was listed may hold a "?"."""
    location = Location.__new__(Location)
    location._root, location.path, location.patience = root, path, patience
    return location


_TEMPORARY = ".part-"
_FILE_SYSTEMS: dict[str, FileSystem] = {}


def _rename(temporary: Path, target: Path) -> None:
    """When it is on the disk: after a power cut some file systems have the name and no content."""
    with temporary.open("rb") as stream:
        os.fsync(stream.fileno())
    os.replace(temporary, target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # not all shares can; the content is safe
            os.fsync(folder)
    finally:
        os.close(folder)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
