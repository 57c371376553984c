"""Where picture files lie: a folder or a zip. Their names are listed up front, their bytes read when asked for.

Names are kept in one array of bytes, not as a million strings: worker processes share its pages with their parent, while counting the
references of a million objects would copy them all.
"""

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from sdediff.data.decoding import PICTURES
from sdediff.data.errors import DAMAGED, DataError, first_line

LIST = "dataset.json"


class Names(Sequence[str]):
    """Many names in two arrays."""

    def __init__(self, names: list[str]):
        raw = [os.fsencode(name) for name in names]
        self.ends = np.cumsum([0, *map(len, raw)])
        self.bytes = np.frombuffer(b"".join(raw), np.uint8)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, i: int) -> str:  # type: ignore[override]
        return os.fsdecode(self.bytes[self.ends[i] : self.ends[i + 1]].tobytes())


class Store(Protocol):
    """Named files: `names` of the pictures, relative to the store, with slashes; `others` of files of other kinds."""

    path: Path
    names: Names
    others: list[str]
    empty: list[str]

    def open(self, i: int) -> BinaryIO: ...

    def label_list(self) -> bytes | None:
        """The bytes of the dataset.json, or None."""
        ...

    def full(self, i: int) -> str:
        """The name of a picture in a message."""
        ...


class Folder:
    """A folder and those inside it. Hidden files and folders are left alone, links are followed."""

    def __init__(self, path: Path, order: Callable[[str], Any]):
        self.path = path
        names: list[str] = []
        self.others: list[str] = []
        self.empty: list[str] = []
        seen: set[str] = set()
        for at, folders, files in os.walk(path, followlinks=True, onerror=_unreadable):
            real = os.path.realpath(at)
            folders[:] = [] if real in seen else [f for f in folders if not f.startswith(".")]
            if real in seen:  # a link back up
                continue
            seen.add(real)
            inside = Path(at).relative_to(path)
            _sort_out([(inside / f).as_posix() for f in files if not f.startswith(".")], names, self.others)
        self.empty = _empty([f.name for f in path.iterdir() if f.is_dir() and not f.name.startswith(".")], names)
        self.names = Names(sorted(names, key=order))

    def open(self, i: int) -> BinaryIO:
        try:
            return (self.path / self.names[i]).open("rb")
        except OSError as e:
            raise DataError(f"{self.full(i)} cannot be read ({e.strerror}).") from e

    def label_list(self) -> bytes | None:
        file = self.path / LIST
        try:
            return file.read_bytes() if file.is_file() else None
        except OSError as e:
            raise DataError(f"{file} cannot be read ({e.strerror}).") from e

    def full(self, i: int) -> str:
        return str(self.path / self.names[i])


class Zipped:
    """A zip file, stored or deflated. Only where each member begins is kept, so any process may read it at any time."""

    def __init__(self, path: Path, order: Callable[[str], Any]):
        self.path = path
        names: list[str] = []
        self.others: list[str] = []
        try:
            with zipfile.ZipFile(path) as archive:
                visible = [m for m in archive.infolist() if not _hidden(m.filename)]
                self.around = _around([m.filename for m in visible])
                members = {m.filename.removeprefix(self.around): m for m in visible if not m.is_dir()}
                folders = {f.split("/")[0] for f in (m.filename.removeprefix(self.around) for m in visible) if "/" in f}
                self._label_list = archive.read(members[LIST]) if LIST in members else None
        except DAMAGED as e:
            raise DataError(f"{path} is not a whole zip file ({first_line(e)}). Copy it again.") from e
        _sort_out(list(members), names, self.others)
        names.sort(key=order)
        self.empty = _empty(sorted(folders), names)
        self.names = Names(names)
        chosen = [members[name] for name in names]
        for m in chosen:
            if m.flag_bits & 1 or m.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                fault = "is encrypted" if m.flag_bits & 1 else f"is packed by method {m.compress_type}"
                raise DataError(
                    f"{path}: {m.filename} {fault}. Expected members that are stored or deflated: zip it again with `zip -0 -r`."
                )
        places = [(m.header_offset, m.compress_size, m.file_size, m.CRC, m.compress_type) for m in chosen]
        self.places = np.array(places, np.int64).reshape(-1, 5)

    def open(self, i: int) -> BinaryIO:
        begin, packed, size, crc, method = self.places[i].tolist()
        try:
            with self.path.open("rb") as file:
                file.seek(begin)
                head = file.read(30)
                signature, name, extra = struct.unpack("<4s22x2H", head)
                file.seek(name + extra, os.SEEK_CUR)
                data = file.read(packed)
            if method == zipfile.ZIP_DEFLATED:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
            if signature != b"PK\3\4" or len(data) != size or zlib.crc32(data) != crc:
                raise zipfile.BadZipFile("its checksum differs")
        except DAMAGED as e:
            raise DataError(f"{self.full(i)} cannot be read from the zip ({first_line(e)}). Copy the file again.") from e
        return io.BytesIO(data)

    def label_list(self) -> bytes | None:
        return self._label_list

    def full(self, i: int) -> str:
        return f"{self.path}:{self.around}{self.names[i]}"


def _around(names: list[str]) -> str:
    """The single folder around all, "" if there is none, or "a/b/": it is no class."""
    around = ""
    while len({name.removeprefix(around).split("/")[0] for name in names if name != around}) == 1:
        inner = next(name for name in names if name != around).removeprefix(around).split("/")[0] + "/"
        if any(not name.startswith(around + inner) for name in names if name != around):
            break
        names, around = [name for name in names if name != around], around + inner
    return around


def _sort_out(found: list[str], names: list[str], others: list[str]) -> None:
    """Pictures to names; what is neither a picture nor the list of labels to others."""
    for name in found:
        if name.lower().endswith(PICTURES):
            names.append(name)
        elif name != LIST:
            others.append(name)


def _empty(folders: list[str], names: list[str]) -> list[str]:
    """The folders at the top in which there is no picture."""
    full = {name.split("/")[0] for name in names if "/" in name}
    return sorted(f for f in folders if f not in full)


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _unreadable(wrong: OSError) -> None:
    raise DataError(f"The folder {wrong.filename} cannot be read ({wrong.strerror}).") from wrong
