"""Where data come from: the order of sources, and what is said of it."""

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.base import TaskError
from tasks.download import DownloadError, PinnedFile, download
from tasks.sources import Layout, SourceSpec, fetch_downloads, resolve_source

pytestmark = pytest.mark.usefixtures("fresh_cache")

CONTENT = b"downloaded text\n" * 100
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server() -> Iterator[str]:
    """A web server on this machine that knows one file."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path == "/file.txt"
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(CONTENT if found else b"no")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()
        thread.join()


def spec_of(*downloads: PinnedFile) -> SourceSpec:
    return SourceSpec(
        task="demo",
        suffixes=(".txt",),
        layouts=(Layout(name="best", globs=("demo/best/*.txt",)), Layout(name="any", globs=("demo/**/*",))),
        downloads=downloads,
    )


def write(path: Path, text: str = "text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_nothing_anywhere_is_embedded() -> None:
    resolved = resolve_source(spec_of())
    assert (resolved.kind, resolved.files, resolved.notes) == ("embedded", (), ())


def test_data_root_by_preference(tmp_path: Path) -> None:
    write(tmp_path / "demo/other/b.txt")
    write(tmp_path / "demo/other/README.txt")
    write(tmp_path / "demo/picture.png")
    resolved = resolve_source(spec_of(), data_root=tmp_path)
    assert (resolved.kind, resolved.layout) == ("data root", "any")
    assert [file.name for file in resolved.files] == ["demo/other/b.txt"]
    write(tmp_path / "demo/best/a.txt")
    assert resolve_source(spec_of(), data_root=tmp_path).layout == "best"


def test_environment_names_the_data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "demo/a.txt")
    monkeypatch.setenv("SEQBENCH_DATA", str(tmp_path))
    assert resolve_source(spec_of()).kind == "data root"
    monkeypatch.setenv("SEQBENCH_DATA", str(tmp_path / "gone"))
    with pytest.raises(TaskError, match=r"SEQBENCH_DATA=.*gone: no such folder"):
        resolve_source(spec_of())


def test_missing_data_root_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"--data=.*gone: no such folder"):
        resolve_source(spec_of(), data_root=tmp_path / "gone")


def test_data_root_without_the_tasks_files_is_noted(tmp_path: Path) -> None:
    resolved = resolve_source(spec_of(), data_root=tmp_path)
    assert resolved.kind == "embedded"
    assert resolved.notes == ("the data root holds no files for demo",)


def test_source_comes_first(tmp_path: Path) -> None:
    write(tmp_path / "root/demo/a.txt")
    mine = write(tmp_path / "mine/b.dat")
    resolved = resolve_source(spec_of(), data_root=tmp_path / "root", source=mine)
    assert resolved.kind == "user"
    assert [file.name for file in resolved.files] == ["b.dat"]
    assert resolved.sha256 == hashlib.sha256(b"text").hexdigest(), "one file keeps its own sha256"


def test_source_folder(tmp_path: Path) -> None:
    for name in ("z.txt", "sub/a.txt.gz", "pack.tar.xz", ".hidden/c.txt", "notes.md"):
        write(tmp_path / "mine" / name)
    names = [file.name for file in resolve_source(spec_of(), source=tmp_path / "mine").files]
    assert names == ["pack.tar.xz", "sub/a.txt.gz", "z.txt"]


def test_identity_follows_names_and_contents(tmp_path: Path) -> None:
    def identity(**files: str) -> str:
        folder = tmp_path / str(abs(hash(tuple(files.items()))))
        for name, text in files.items():
            write(folder / f"{name}.txt", text)
        return resolve_source(spec_of(), source=folder).sha256

    assert len({identity(a="1", b="2"), identity(a="1", b="3"), identity(a="1", c="2")}) == 3


def test_missing_source(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"--source demo=.*gone: no such file or folder"):
        resolve_source(spec_of(), source=tmp_path / "gone")


def test_source_folder_without_data(tmp_path: Path) -> None:
    write(tmp_path / "picture.png")
    with pytest.raises(TaskError, match=r"none of its 1 files ends in one of \.txt"):
        resolve_source(spec_of(), source=tmp_path)


def test_downloads_wait_to_be_allowed(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(PinnedFile(name="file.txt", url=f"{server}/file.txt", sha256=SHA256))
    assert resolve_source(spec).kind == "embedded"
    monkeypatch.setenv("SEQBENCH_DOWNLOAD", "1")
    resolved = resolve_source(spec)
    assert resolved.kind == "download"
    assert resolved.files[0].path.read_bytes() == CONTENT
    monkeypatch.delenv("SEQBENCH_DOWNLOAD")
    again = resolve_source(spec)
    assert (again.kind, again.sha256) == ("cache", resolved.sha256)


def test_damaged_download_in_the_cache_is_not_used(server: str) -> None:
    file = PinnedFile(name="file.txt", url=f"{server}/file.txt", sha256=SHA256)
    download(file).write_bytes(b"damaged")
    assert resolve_source(spec_of(file)).kind == "embedded"
    assert download(file).read_bytes() == CONTENT


def test_wrong_sha256_is_refused(server: str) -> None:
    file = PinnedFile(name="file.txt", url=f"{server}/file.txt", sha256="0" * 64)
    with pytest.raises(TaskError, match=f"sha256 {SHA256} is not the pinned 0000"):
        download(file)
    assert not file.cached.exists()


@pytest.mark.parametrize("url", ["{server}/nothing.txt", "http://127.0.0.1:9/file.txt"])
def test_failed_download_falls_back_and_is_noted(server: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQBENCH_DOWNLOAD", "1")
    file = PinnedFile(name="file.txt", url=url.format(server=server), sha256=SHA256)
    with pytest.raises(DownloadError):
        download(file)
    resolved = resolve_source(spec_of(file))
    assert resolved.kind == "embedded"
    assert "download failed" in resolved.notes[0]
    with pytest.raises(TaskError, match="demo: download failed"):
        fetch_downloads(spec_of(file))


def test_pinned_addresses_name_a_commit() -> None:
    from tasks.dna import Dna
    from tasks.language import Language

    for pinned in Language.spec.downloads + Dna.spec.downloads:
        assert len(pinned.sha256) == 64
        assert any(len(part) == 40 for part in pinned.url.split("/"))
