"""scripts/convert_camvid.py: copies of CamVid made from data in the package's layout, and back."""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import REPO, write_manifest
from convert_camvid import GROUPS, LAYOUTS, convert, parse_size, read_ids, tables
from PIL import Image

from camvid_lang.data import camvid as data
from camvid_lang.data.camvid import FOLDERS, decode, verify
from camvid_lang.data.classes import CLASSES, PALETTE
from camvid_lang.errors import InputError

RELEASE = [key for key in data.read_manifest() if "annot/" not in key]
TWO_OF_EACH = [n for s in FOLDERS for n in [n for n in RELEASE if n.startswith(f"{s}/")][:2]]
GROUPED = [[x.split() for x in GROUPS[key].split(", ")] for key in (*CLASSES, "void")]
COLOURS = {name: tuple(map(int, rgb)) for group in GROUPED for name, *rgb in group}
del COLOURS["(SegNet)"]
NAMES = sorted(COLOURS, key=str.lower)  # fastai's order
MEMBERS = [[NAMES.index(name) for name, *_ in group if name in COLOURS] for group in GROUPED]
each_layout = pytest.mark.parametrize("layout", LAYOUTS[:3], ids=lambda layout: layout.name)


def copy_of(layout, source, root, names=TWO_OF_EACH):
    """Write data in the package's layout as others have it, with random members of each group."""
    table = np.array([[members[i % len(members)] for i in range(60)] for members in MEMBERS])
    for seed, (split, stem) in enumerate(name.split("/") for name in names):
        frames, labels = (root / x.format(split) for x in (layout.frames, layout.labels))
        frames.mkdir(parents=True, exist_ok=True)
        labels.mkdir(exist_ok=True)
        frame = next((source / split).glob(f"{stem}.*"))
        shutil.copyfile(frame, frames / frame.name)
        ids = np.array(Image.open(source / f"{split}annot" / f"{stem}.png"))
        label = table[ids, np.random.default_rng(seed).integers(0, 60, ids.shape)]
        if layout.name != "fastai":
            label = np.array([COLOURS[name] for name in NAMES])[label]
        label = Image.fromarray(label.astype(np.uint8))
        label.save(labels / f"{stem}{layout.ending}.png", compress_level=1)
    if layout.name == "fastai":
        (root / "codes.txt").write_text("\n".join(NAMES))
    return root


def draw(scenes, root, names=TWO_OF_EACH, zoom=1):
    """Write scenes of 64x48 in the package's layout, by names of the release."""
    for number, name in enumerate(names):
        for kind, suffix in (("", ".webp"), ("annot", ".png")):
            scene = Image.open(scenes / f"train{kind}" / f"scene_{number % 6:05d}{suffix}")
            path = root / f"{name.replace('/', f'{kind}/')}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.array(scene)[::4, ::4].repeat(zoom, 0).repeat(zoom, 1)).save(path)
    return root


def contents(root):
    """{"train/NAME" or "trainannot/NAME": shape and pixels} of a folder in the package's layout."""
    read = {path: decode(path) for path in root.rglob("*.*") if path.name != "dataset.json"}
    return {f"{p.parent.name}/{p.stem}": (a.shape, a.tobytes()) for p, a in read.items()}


def listing(root):
    return {path: path.is_file() and path.read_bytes() for path in root.rglob("*")}


@each_layout
def test_a_copy_is_converted_back(layout, scenes, tmp_path):
    source = tmp_path / "copy"
    copy_of(layout, draw(scenes, tmp_path / "in"), source / "a" / "CamVid")
    (source / "__MACOSX" / "CamVid" / "train_labels").mkdir(parents=True)
    if layout.name == "fastai":  # the others as folders
        source = Path(shutil.make_archive(str(tmp_path / "archive"), "zip", source))
    before = listing(tmp_path)
    report = convert(source, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "in")
    assert report.name == verify(tmp_path / "out").name == f"CamVid 64x48 ({layout.name})"
    shutil.rmtree(tmp_path / "out")
    assert listing(tmp_path) == before  # nothing else was written


@pytest.mark.camvid
@each_layout
def test_real_camvid_is_converted_back(layout, camvid, tmp_path):
    report = convert(copy_of(layout, camvid, tmp_path / "copy", RELEASE[::88]), tmp_path / "out")
    assert report.counts == {"train": 4, "val": 1, "test": 3}
    (note,) = report.notes
    assert "frames missing" in note  # and no pixels differ


@each_layout
def test_what_is_the_release_is_plain_camvid(layout, scenes, tmp_path, monkeypatch):
    """Resized from twice its size, by nearest pixels of labels and means of blocks of frames."""
    write_manifest(draw(scenes, tmp_path / "in"), tmp_path / "manifest")
    monkeypatch.setattr(data, "MANIFEST", tmp_path / "manifest")
    source = copy_of(layout, draw(scenes, tmp_path / "big", zoom=2), tmp_path / "copy")
    assert convert(source, tmp_path / "big2").name == f"CamVid 128x96 ({layout.name})"
    assert convert(source, tmp_path / "small", (33, 44)).size == (33, 44)
    report = convert(source, tmp_path / "out", (48, 64))
    assert (report.complete, report.name) == (True, "CamVid")
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_splits(scenes, tmp_path):
    """Folders decide; without them SegNet's split, and train for what is not in it."""
    train, val, test = (name.split("/")[1] for name in TWO_OF_EACH[::2])
    moved = [f"train/{val}", f"val/{train}", f"test/{test}", "test/own_1"]
    source = draw(scenes, tmp_path / "in", moved)
    convert(copy_of(LAYOUTS[0], source, tmp_path / "kaggle", moved), tmp_path / "out")
    assert contents(tmp_path / "out") == contents(source)
    report = convert(copy_of(LAYOUTS[1], source, tmp_path / "fastai", moved), tmp_path / "out2")
    assert report.counts == {"train": 2, "val": 1, "test": 1}
    assert "frames not in the release, such as train/own_1" in " ".join(report.notes)
    with pytest.raises(InputError, match="no frame is in the val set of SegNet's split"):
        convert(copy_of(LAYOUTS[2], source, tmp_path / "original", moved[1:]), tmp_path / "out3")


def test_all_defects_are_named_and_nothing_is_left(scenes, tmp_path):
    names, source = RELEASE[::100], tmp_path / "copy"
    copy_of(LAYOUTS[0], draw(scenes, tmp_path / "in", names), source, names)
    labels = sorted(source.rglob("*_L.png"))
    frames = [next(source.rglob(f"{path.stem[:-2]}.png")) for path in labels]
    labels[0].unlink()
    frames[1].unlink()
    for path, size in ((labels[4], (64, 40)), (labels[6], (32, 48)), (frames[6], (32, 48))):
        Image.open(path).crop((0, 0, *size)).save(path)
    Image.new("RGB", (64, 48), (201, 201, 201)).save(labels[5])
    before = listing(tmp_path)
    with pytest.raises(InputError) as error:
        convert(source, tmp_path / "out")
    for text in (
        f"{frames[0]}: no label {labels[0]}",
        f"{labels[1]}: no frame in {frames[1].parent}",
        f"{labels[4]}: label is (40, 64), its frame (48, 64)",
        f"{labels[5]}: colour (201, 201, 201) at row 0, column 0 (3072 such pixels) stands for no",
        "frames are of several sizes (32x48, 64x48); give one (--size WxH)",
    ):
        assert text in str(error.value)
    assert listing(tmp_path) == before


def test_places_and_arguments_that_are_rejected(scenes, tmp_path):
    source = copy_of(LAYOUTS[1], draw(scenes, tmp_path / "in"), tmp_path / "copies" / "a")
    copy_of(LAYOUTS[0], tmp_path / "in", tmp_path / "copies" / "b")
    (tmp_path / "empty").mkdir()
    for dest in (source / "train", tmp_path / "empty"):  # may be inside, and may exist
        convert(source, dest)
        assert contents(dest) == contents(tmp_path / "in")
    odd = shutil.copytree(source, tmp_path / "odd")
    (odd / "codes.txt").write_text("Animal\nArchway\nCat")
    for wrong, dest, options, message in (
        (source, "in", {}, "in: not an empty folder"),
        (source / "images", "out", {}, "images: not a copy of CamVid"),
        (tmp_path / "copies", "out", {}, r"copies: holds 2 data sets \(.*a, .*b\); give one"),
        (odd, "out", {}, "'Cat' is not one of CamVid's 32"),
        (source, "out", {"first_id": 1}, "fastai's labels need no --first-id"),
        (tmp_path / "in", "out", {"void": 3}, "void is the id of a class"),
    ):
        with pytest.raises(InputError, match=message):
            convert(wrong, tmp_path / dest, **options)
    for text in ("480", "0x360", "480x360x3", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="WIDTHxHEIGHT"):
            parse_size(text)


def test_ids_from_one(scenes, tmp_path):
    """Rejected where nothing says so; by the command line, then as dataset.json says."""
    for path in draw(scenes, tmp_path / "one").glob("*annot/*.png"):
        Image.fromarray((np.array(Image.open(path)) + 1) % 12).save(path)
    with pytest.raises(InputError, match=r"one: ids look shifted by one; .* --first-id 1"):
        convert(tmp_path / "one", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    command = [sys.executable, REPO / "scripts/convert_camvid.py", tmp_path / "one"]
    command += [tmp_path / "out", "--first-id=1", "--void=0", "--size=64X48"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "CamVid 64x48 (SegNet)" in printed
    assert contents(tmp_path / "out") == contents(draw(scenes, tmp_path / "in"))
    (tmp_path / "one" / "dataset.json").write_text('{"first_id": 1, "void": 0, "name": "Mine"}')
    assert convert(tmp_path / "one", tmp_path / "out2").name == "Mine"
    assert contents(tmp_path / "out2") == contents(tmp_path / "in")


# Labels in the package's layout

ALL = (np.arange(48, dtype=np.uint8) % 12).reshape(6, 8)
RAMP = np.arange(256, dtype=np.uint8).repeat(3).reshape(256, 3)
RGB, ORDER = np.array(PALETTE, np.uint8), np.random.default_rng(0).permutation(12)
VOC = np.array([(i % 2 * 128, i // 2 % 2 * 128, i // 4 * 128) for i in range(8)], np.uint8)


@pytest.mark.parametrize(
    ("values", "palette", "expected"),
    [
        (np.where(ALL == 4, np.uint8(255), ALL), None, np.where(ALL == 4, 11, ALL)),
        (ALL, RAMP, ALL),
        (ALL, RGB, ALL),
        (ALL, RGB[ORDER], ORDER[ALL]),
        (RGB[ALL], None, ALL),
        (RGB[ALL % 2 * 11], None, ALL % 2 * 11),  # black next to the grey of sky
        (ALL % 2, VOC[:2], "does not show whether indices or colours count"),
        (ALL % 2, VOC, r"palette has \(0, 0, 128\), which is not one of CamVid's"),  # not used
        (np.stack([ALL] * 3, axis=2), None, "RGB, but grey"),
        (RGB[ALL] + (ALL == 3)[..., None], None, r"colour \(129, 65, 129\) at row 0, column 3"),
        (ALL + 1, None, "value 12 at row 1, column 3 .* see --first-id and --void"),
        (np.dstack([RGB[ALL], ALL]), None, "transparent"),
        (ALL.astype(np.uint16), None, "mode I"),
    ],
)
def test_labels_are_read_as_what_they_mean_or_rejected(values, palette, expected, tmp_path):
    image, path = Image.fromarray(values), tmp_path / "x.png"
    if palette is not None:
        image.putpalette(palette.tobytes())
    image.save(path)
    both = tables(LAYOUTS[3], tmp_path, None, None)
    if isinstance(expected, str):
        with pytest.raises(InputError, match=f"{path}: .*{expected}"):
            read_ids(path, *both)
    else:
        assert np.array_equal(read_ids(path, *both), expected)
