"""Data on disk and in memory: every defect is named, images and labels stay together."""

import json
import os
import shutil
import time
import unicodedata
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from camvid_lang.cli import main
from camvid_lang.data.camvid import Frames, find_root, load_camvid, read_image, verify
from camvid_lang.data.classes import VOID
from camvid_lang.data.download import download_camvid
from camvid_lang.errors import InputError


def rewrite(path, pixels):
    Image.fromarray(pixels).save(path)


def test_a_valid_set_is_verified_and_loaded(tiny_dataset):
    report = verify(tiny_dataset)
    assert (report.problems, report.notes, report.complete) == ((), (), False)  # not CamVid
    assert report.counts == {"train": 6, "val": 2, "test": 3}
    assert (report.name, report.size) == ("data", (96, 128))
    assert "6 train, 2 val, 3 test frames, 128x96" in report.summary()
    assert "usable: no problems found" in report.summary()
    frames = load_camvid(tiny_dataset)
    assert (frames.names[0], frames.names[-1]) == ("train/train_000", "val/val_001")
    assert (len(frames), frames.images.shape) == (8, (8, 3, 96, 128))
    assert frames.images.dtype == frames.labels.dtype == torch.uint8
    for index, name in enumerate(frames.names):
        split, stem = name.split("/")
        image = np.array(Image.open(tiny_dataset / split / f"{stem}.png"))
        label = np.array(Image.open(tiny_dataset / f"{split}annot" / f"{stem}.png"))
        assert np.array_equal(frames.images[index].permute(1, 2, 0).numpy(), image)
        assert np.array_equal(frames.labels[index].numpy(), label)
    assert frames.to("cpu").digest == frames.digest


def test_split_and_limit(tiny_dataset):
    names = load_camvid(tiny_dataset, "train", limit=3).names
    assert names == ("train/train_000", "train/train_002", "train/train_004")
    assert len(load_camvid(tiny_dataset, "train", limit=60)) == 6
    with pytest.raises(InputError, match="limit 0"):
        load_camvid(tiny_dataset, "train", limit=0)
    with pytest.raises(InputError, match=r"split 'dev' is unknown; .* train, val, trainval, test"):
        load_camvid(tiny_dataset, "dev")


def test_a_loaded_split_is_kept_until_a_file_changes(make_dataset):
    root = make_dataset(suffix=".bmp")
    first, path = load_camvid(root, "val"), root / "val" / "val_001.bmp"
    assert load_camvid(str(root), "val") is first
    before, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # and of equal size
    second = load_camvid(root, "val")
    assert (second.images != first.images).sum() == 1
    assert second.digest != first.digest


def test_the_digest_is_of_the_content(tiny_dataset, make_dataset):
    frames = load_camvid(tiny_dataset, "train")
    assert load_camvid(make_dataset("copy", suffix=".bmp"), "train").digest == frames.digest
    order = torch.tensor([1, 0, 2, 3, 4, 5])
    names, changed = tuple(frames.names[i] for i in order), frames.labels.clone()
    changed[5, -1, -1] ^= 1
    others = [
        replace(frames, names=names),
        Frames(frames.images[order], frames.labels[order], names),
        replace(frames, labels=changed),
        replace(frames, images=frames.images.view(6, 3, 128, 96)),
    ]
    assert len({frames.digest, *(other.digest for other in others)}) == 5


@pytest.mark.parametrize("suffix", [".webp", ".jpg", ".jpeg", ".bmp", ".PNG"])
def test_frames_in_other_formats(make_dataset, suffix):
    root = make_dataset(suffix=suffix)
    for entry in (".DS_Store", "._train_000.png", "train_000.png.part", "Thumbs.db"):
        (root / "train" / entry).write_bytes(b"x")  # is skipped
        (root / "trainannot" / entry).write_bytes(b"x")
    (root / "__MACOSX" / "train").mkdir(parents=True)
    assert verify(root).problems == ()
    assert len(load_camvid(root, "test")) == 3


LABEL = np.zeros((96, 128), np.uint8)
RGB = LABEL[..., None].repeat(3, 2)
IMAGE, ANNOT = "train/train_001.png", "trainannot/train_001.png"
DEFECTS = {  # file, new content (None: deleted), and what is reported of which file
    "no label": (ANNOT, None, IMAGE, f"no label ROOT/{ANNOT}"),
    "no frame": (IMAGE, None, ANNOT, "no frame in ROOT/train"),
    "two frames": ("train/train_001.jpg", RGB, IMAGE, "same name as train_001.jpg; keep one"),
    "text frame": (IMAGE, "text", IMAGE, "cannot be read as an image ("),
    "deep frame": (IMAGE, LABEL.astype(np.uint16), IMAGE, "image mode I;16, but 8 bits are"),
    "cut label": (ANNOT, "\x89PNG\r\n", ANNOT, "not a PNG; save the ids as an 8-bit grey PNG"),
    "colours": (ANNOT, RGB, ANNOT, "a PNG of 8-bit RGB; save the ids as an 8-bit grey PNG: if"),
    "other ids": (ANNOT, LABEL + np.uint8(77), ANNOT, "id 77 is not one of 0..10 (void is 11)"),
    "small label": (ANNOT, LABEL[:50], ANNOT, "label is (50, 128), its frame (96, 128)"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_verify_and_loading_refuse_the_same_defects_in_the_same_words(tiny_dataset, defect):
    changed, content, named, message = DEFECTS[defect]
    path = tiny_dataset / changed
    if content is None:
        path.unlink()
    elif isinstance(content, str):
        path.write_text(content, encoding="latin-1")
    else:
        rewrite(path, content)
    (problem,) = verify(tiny_dataset).problems
    message = message.replace("ROOT", str(tiny_dataset))
    assert problem.startswith(f"{tiny_dataset / named}: {message}")
    assert f"problem: {problem}\nnot usable: 1 problem(s) to fix" in verify(tiny_dataset).summary()
    for split in ("train", "trainval"):
        with pytest.raises(InputError) as caught:
            load_camvid(tiny_dataset, split)
        assert str(caught.value) == problem
    assert len(load_camvid(tiny_dataset, "val")) == 2
    assert main(["data", "verify", str(tiny_dataset)]) == 1


def test_loading_names_eight_problems_and_counts_the_others(make_dataset):
    root = make_dataset(train=12)
    for path in (root / "trainannot").iterdir():
        rewrite(path, LABEL + np.uint8(77))
    for folder in ("train", "trainannot"):
        path = root / folder / "train_011.png"
        rewrite(path, np.array(Image.open(path))[:90] * 0)
    with pytest.raises(InputError) as caught:
        load_camvid(root, "train")
    text = str(caught.value)
    assert text.count("id 77 is not one of 0..10") == 8
    assert f"; and 3 more; `python -m camvid_lang data verify {root}` lists them all" in text
    problems = verify(root).problems
    assert f"{root}/train/train_011.png: frame is 90x128, most are 96x128" in problems
    assert len(problems) == 12
    shutil.rmtree(root / "testannot")
    for path in (root / "val").iterdir():
        path.unlink()
    for folder in (root / "val", root / "testannot"):
        assert f"{folder}: no such folder, or no .png files in it" in verify(root).problems


def test_the_data_set_in_a_folder_is_found_or_the_layout_explained(make_dataset, tmp_path):
    def refused(path, message):
        for read in (verify, load_camvid):
            with pytest.raises(InputError, match=message):
                read(path)

    out = tmp_path / "out"
    (out / "images").mkdir(parents=True)
    (tmp_path / "file").write_text("x")
    for name in ("nowhere", "file"):
        refused(tmp_path / name, f"{name}: no such folder; download CamVid with `camvid-lang data")
    for hidden in ("__MACOSX", ".trash"):
        (out / hidden / "trainannot").mkdir(parents=True)
    assert find_root(tmp_path) is None
    refused(out, r"out: no train/ and trainannot/ in it; scripts/convert_camvid\.py makes them")
    root = make_dataset("out/a/b/CamVid")
    assert find_root(root) == find_root(out) == root
    assert find_root(tmp_path) is None  # four levels below
    refused(out, f"out: the data set is in {root}; give that folder")
    shutil.copytree(root, out / "other")
    refused(out, r"out: holds 2 data sets \(.*CamVid, .*other\); give one of them")


def test_one_name_in_two_unicode_forms_is_one_name(tiny_dataset):
    for folder, form in (("train", "NFD"), ("trainannot", "NFC")):
        name = unicodedata.normalize(form, "Å é ガ.png")
        (tiny_dataset / folder / "train_000.png").rename(tiny_dataset / folder / name)
    assert verify(tiny_dataset).problems == ()
    assert "train/Å é ガ" in load_camvid(tiny_dataset, "train").names
    folder = tiny_dataset / "train"
    shutil.copy(folder / "train_003.png", folder / "Å é ガ.png")
    (problem,) = verify(tiny_dataset).problems
    assert "same name as Å é ガ.png" in unicodedata.normalize("NFC", problem)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_dataset_json_names_the_data_and_counts_its_ids(tiny_dataset, encoding):
    digest, card = load_camvid(tiny_dataset, "train").digest, tiny_dataset / "dataset.json"
    labels = {path: np.array(Image.open(path)) for path in tiny_dataset.glob("*annot/*.png")}
    rows = ({"first_id": 1}, 1, 12), ({"void": 255}, 0, 255), ({"first_id": 1, "void": 0}, 1, 0)
    for counts, first, void in (*rows, ({}, 0, 11)):
        text = {"name": "Straße", "note": "x", **counts}
        card.write_text(json.dumps(text, ensure_ascii=False), encoding=encoding)
        for path, ids in labels.items():
            rewrite(path, np.where(ids == VOID, void, ids + first).astype(np.uint8))
        assert (verify(tiny_dataset).problems, verify(tiny_dataset).name) == ((), "Straße")
        assert load_camvid(tiny_dataset, "train").digest == digest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"void": 0}', "void 0 is the id of sky; give first_id too"),
        ('{"void": "0"}', "void '0' is not a whole number in 0..255"),
        ('{"void": 256}', "void 256 is not a whole number in 0..255"),
        ('{"first_id": true}', "first_id True is not a whole number in 0..244"),
        ('{"first_id": -1}', "first_id -1 is not a whole number in 0..244"),
        ('{"first-id": 1}', "unknown key 'first-id' (known: name, note, first_id, void)"),
        *[(text, "") for text in ("[1, 2]", '{"name": ', "\xff", "[" * 100_000)],
    ],
    ids=lambda value: value[:30],
)
def test_a_wrong_dataset_json_is_refused(tiny_dataset, text, message):
    path = tiny_dataset / "dataset.json"
    path.write_text(text, encoding="latin-1")
    for read in (verify, load_camvid):
        with pytest.raises(InputError) as caught:
            read(tiny_dataset)
        assert str(caught.value).startswith(f"{path}: {message}")
        assert str(caught.value).endswith("; correct it")


def test_ids_that_count_from_one_are_a_note_and_a_warning(scenes, tmp_path):
    root = shutil.copytree(scenes, tmp_path / "scenes")
    before = load_camvid(root, "train").digest
    for path in root.glob("*annot/*.png"):
        rewrite(path, (np.array(Image.open(path)) + 1) % 12)
    hint = 'ids look shifted by one: if they count from 1, set "first_id": 1, "void": 0 in'
    assert (verify(root).problems, len(verify(root).notes)) == ((), 1)
    assert f"note: {hint}" in verify(root).summary()
    with pytest.warns(UserWarning, match=f"^{root}: {hint}"):
        load_camvid(root, "train")
    (root / "dataset.json").write_text('{"first_id": 1, "void": 0}')
    assert verify(root).notes == ()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_camvid(root, "train").digest == before


def note(count, kind, names):
    return f"not the CamVid release: {count} {kind}, such as {names}"


def test_files_with_other_pixels_are_named(release, capsys):
    command = ["data", "verify", str(release)]
    assert main(command) == 0
    assert "complete: every pixel is as in the CamVid release" in capsys.readouterr().out
    for name, suffix in (("val/val_000", ".jpg"), ("test/test_001", ".webp")):
        path = release / f"{name}.png"
        Image.open(path).save(path.with_suffix(suffix), lossless=True)  # but for JPEG
        path.unlink()
    label = release / "trainannot" / "train_003.png"
    ids = np.array(Image.open(label))
    ids[50, 60] = (ids[50, 60] + 1) % 12
    rewrite(label, ids)
    named = "trainannot/train_003, val/val_000"
    assert verify(release).notes == (note(2, "files with other pixels", named),)
    assert main(command) == 1
    (release / "dataset.json").write_text('{"name": "CamVid, edited"}')
    assert main(command) == 0
    assert "usable, but see the notes" in capsys.readouterr().out


def test_frames_missing_moved_or_foreign_are_named(release):
    for suffix in ("", "annot"):
        (release / f"train{suffix}" / "train_000.png").unlink()
        moved = release / f"test{suffix}" / "test_001.png"
        moved.rename(release / f"train{suffix}" / "test_001.png")
        shutil.copy(release / f"val{suffix}" / "val_000.png", release / f"val{suffix}" / "x.png")
    report = verify(release)
    assert (report.problems, report.complete) == ((), False)
    assert report.notes == (
        note(2, "frames missing", "test/test_001, train/train_000"),
        note(1, "frames of another split", "train/test_001"),
        note(1, "frames not in the release", "val/x"),
    )
    with pytest.warns(UserWarning, match="not the CamVid release: 1 frames missing"):
        assert len(load_camvid(release, "test")) == 2


def test_read_image_converts_or_refuses(tmp_path):
    path, colours = tmp_path / "x.png", np.arange(144, dtype=np.uint8).reshape(6, 8, 3)
    clear = Image.fromarray(np.dstack([colours, colours[..., 0] * 0]))
    clear.save(path)
    with pytest.raises(InputError, match=r"x\.png: some pixels are transparent"):
        read_image(path)
    clear.putalpha(255)
    clear.save(path)
    assert np.array_equal(read_image(path), colours)
    for orientation in (2, 6):  # mirrored, turned by 90 degrees
        exif = Image.Exif()
        exif[0x0112] = orientation
        clear.save(path, exif=exif)
        with pytest.raises(InputError, match=rf"x.png: metadata turn .*ion {orientation}"):
            read_image(path)
    for mode in "LP":
        image = Image.fromarray(colours).convert(mode)
        image.save(path)
        assert np.array_equal(read_image(path), image.convert("RGB"))
    with pytest.raises(InputError, match=r"none\.png: .*No such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(InputError, match="Is a directory"):
        read_image(tmp_path)


@pytest.mark.camvid
def test_the_real_camvid_is_complete_and_checked_quickly(camvid):
    start = time.process_time()  # of all threads: half of it on two cores
    report = verify(camvid)
    assert time.process_time() - start < 30
    assert (report.name, report.complete, report.size) == ("CamVid", True, (360, 480))
    assert report.notes == report.problems == ()
    assert report.counts == {"train": 367, "val": 101, "test": 233}
    assert download_camvid(camvid).complete  # nothing is missing, so nothing is downloaded
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frames = load_camvid(camvid, "test", limit=24)
    assert frames.images.shape == (24, 3, 360, 480)
    assert int(frames.labels.max()) <= VOID
