"""Archives are read safely, and damage is an error that names the file."""

import gzip
import io
import lzma
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from tasks.archive import Member, read_members
from tasks.base import TaskError

TEXTS = {"corpus/a.txt": b"alpha " * 2000, "corpus/b.txt": os.urandom(1).hex().encode() * 9000}
COMPRESSIONS = {".tar": "w", ".tar.xz": "w:xz", ".tar.gz": "w:gz", ".tgz": "w:gz", ".tar.bz2": "w:bz2"}


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w:xz") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def read(path: Path) -> list[Member]:
    return list(read_members(path, path.name, (".txt",)))


@pytest.mark.parametrize("ending", [*COMPRESSIONS, ".zip"])
def test_every_kind_of_archive(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"x{ending}"
    if ending == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in TEXTS.items():
                archive.writestr(name, data)
    else:
        write_tar(path, TEXTS, COMPRESSIONS[ending])
    assert {member.name: member.data for member in read(path)} == TEXTS


@pytest.mark.parametrize("ending", [*COMPRESSIONS, ".zip"])
@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_damaged_archive(tmp_path: Path, ending: str, damage: str) -> None:
    path = tmp_path / f"x{ending}"
    noise = {name: os.urandom(20_000) for name in TEXTS}
    if ending == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in noise.items():
                archive.writestr(name, data)
    else:
        write_tar(path, noise, COMPRESSIONS[ending])
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: int(len(content) * 0.6)]
    elif ending == ".tar":
        content[20_480 + 512 + 30] ^= 0xFF  # plain tar guards its headers alone
    else:
        content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(TaskError, match="damaged or truncated") as error:
        read(path)
    assert str(path) in str(error.value)


def test_tar_without_end_mark(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.txt": b"a" * 512}, "w")
    path.write_bytes(path.read_bytes()[:1024])
    with pytest.raises(TaskError, match="end-of-archive"):
        read(path)


@pytest.mark.parametrize("name", ["../evil.txt", "/etc/evil.txt", "a/../../evil.txt"])
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_names_that_leave_the_archive_are_refused(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / f"x.{kind}"
    if kind == "tar":
        write_tar(path, {name: b"x"}, "w")
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, b"x")
    with pytest.raises(TaskError, match="points outside the archive"):
        read(path)


def test_links_are_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            info = tarfile.TarInfo("link.txt")
            info.type, info.linkname = kind, str(secret)
            archive.addfile(info)
    assert read(path) == []


def test_only_data_is_read(tmp_path: Path) -> None:
    names = ["a.txt", "./b.txt", "README.txt", "LICENSE", ".hidden.txt", "__MACOSX/._a.txt", "picture.png"]
    path = write_tar(tmp_path / "x.tar.gz", dict.fromkeys(names, b"x"), "w:gz")
    assert [member.name for member in read(path)] == ["a.txt", "b.txt"]


@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress)])
def test_compressed_file(tmp_path: Path, ending: str, pack: object) -> None:
    assert callable(pack)
    path = tmp_path / f"a.txt{ending}"
    packed = pack(b"line\n" * 100_000)
    path.write_bytes(packed)
    (member,) = read(path)
    assert member.name == "a.txt"
    assert member.data == b"line\n" * 100_000
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(TaskError, match=r"damaged or truncated near line \d+") as error:
        read(path)
    assert str(path) in str(error.value)


def test_compressed_member(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.txt.gz": gzip.compress(b"hello")}, "w")
    assert [(member.name, member.data) for member in read(path)] == [("a.txt", b"hello")]


def test_encrypted_zip(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", b"hello")
    content = bytearray(path.read_bytes())
    central = content.rfind(b"PK\x01\x02")
    content[central + 8] |= 1  # the flag "encrypted"
    content[6] |= 1
    path.write_bytes(content)
    with pytest.raises(TaskError, match="encrypted"):
        read(path)
