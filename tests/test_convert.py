"""Other copies of CamVid: made from data in CamVid's layout, converted back, nothing lost."""

import json
import shutil

import numpy as np
import pytest
from conftest import write_manifest
from PIL import Image

from camvid_lang.cli import main
from camvid_lang.data import camvid as data
from camvid_lang.data.camvid import FOLDERS, load_camvid, read_image, verify
from camvid_lang.data.classes import CLASSES, GROUPS, ORIGINAL_COLOURS, VOID
from camvid_lang.data.convert import convert
from camvid_lang.data.labels import read_label
from camvid_lang.errors import InputError
from camvid_lang.scenes.dataset import draw_scene

NAMES = list(ORIGINAL_COLOURS)  # alphabetical, whatever the case: fastai's order
COLOURS = np.array(list(ORIGINAL_COLOURS.values()), np.uint8)
MEMBERS = [[NAMES.index(name) for name in GROUPS[group]] for group in CLASSES]
MEMBERS.append([NAMES.index("Void")])
RELEASE = [key for key in data.read_manifest() if "annot/" not in key]


def of_32(label, seed):
    """Ids 0..11 -> indices of `NAMES`: at each pixel any member of its group."""
    draw = np.random.default_rng(seed).integers(0, 60, label.shape)  # 60: no member is preferred
    table = np.array([[members[i % len(members)] for i in range(60)] for members in MEMBERS])
    return table[label, draw].astype(np.uint8)


def copy_of(layout, source, root, names=None):
    """Write data in CamVid's layout as "Kaggle", "fastai" or "original" would have it."""
    pairs = [f"{s}/{p.stem}" for s in FOLDERS for p in sorted((source / s).glob("*.*"))]
    for seed, name in enumerate(names or pairs):
        split, stem = name.split("/")
        frame = next((source / split).glob(f"{stem}.*"))
        label = of_32(np.array(Image.open(source / f"{split}annot" / f"{stem}.png")), seed)
        frames, labels, ending = {
            "Kaggle": (split, f"{split}_labels", "_L"),
            "fastai": ("images", "labels", "_P"),
            "original": ("701_StillsRaw_full", "LabeledApproved_full", "_L"),
        }[layout]
        (root / frames).mkdir(parents=True, exist_ok=True)
        (root / labels).mkdir(exist_ok=True)
        Image.open(frame).convert("RGB").save(root / frames / f"{stem}.png", compress_level=1)
        label = Image.fromarray(label if layout == "fastai" else COLOURS[label])
        label.save(root / labels / f"{stem}{ending}.png", compress_level=1)
    rows = [(name, *map(str, colour)) for name, colour in ORIGINAL_COLOURS.items()]
    write = {
        "Kaggle": {"class_dict.csv": "name,r,g,b\r\n" + "\r\n".join(map(", ".join, rows))},
        "fastai": {"codes.txt": "\n".join(NAMES)},
        "original": {"label_colors.txt": "\n".join(f"{r} {g} {b}\t\t{n}" for n, r, g, b in rows)},
    }[layout]
    for name, text in write.items():
        (root / name).write_text(text, encoding="utf-8")
    return root


LAYOUTS = ("Kaggle", "fastai", "original")
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


@pytest.fixture
def drawn(tmp_path):
    """`drawn(names, size, zoom)`: scenes in CamVid's layout; by default two of each split."""

    def draw(names=(), size=(48, 64), zoom=1, to="in"):
        for seed, name in enumerate(names or two_of_each()):
            for folder, image in zip(("", "annot"), draw_scene(seed, size), strict=True):
                path = tmp_path / to / f"{name.replace('/', f'{folder}/')}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image.repeat(zoom, 0).repeat(zoom, 1)).save(path)
        return tmp_path / to

    return draw


def two_of_each():
    return [n for s in FOLDERS for n in [n for n in RELEASE if n.startswith(f"{s}/")][:2]]


def contents(root):
    """{"train/NAME" or "trainannot/NAME": shape and pixels} of a folder in CamVid's layout."""
    files = [path for path in root.rglob("*.*") if path.name != "dataset.json"]
    reader = {True: lambda path: read_label(path)[0], False: read_image}
    read = {path: reader[path.parent.name.endswith("annot")](path) for path in files}
    return {f"{p.parent.name}/{p.stem}": (a.shape, a.tobytes()) for p, a in read.items()}


def listing(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


# Each layout and back


@each_layout
def test_a_copy_is_converted_back(layout, drawn, tmp_path):
    source = copy_of(layout, drawn(), tmp_path / "copy")
    before = listing(source)
    report = convert(source, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "in")
    assert (report.root, report.problems) == (tmp_path / "out", ())
    assert report.counts == {"train": 2, "val": 2, "test": 2}
    assert report.name == verify(tmp_path / "out").name == f"CamVid 64x48 ({layout})"
    assert listing(source) == before
    assert {path.name for path in tmp_path.iterdir()} == {"in", "copy", "out"}


@each_layout
def test_real_camvid_is_converted_back(layout, camvid, tmp_path):
    names = RELEASE[::88]
    assert {name.split("/")[0] for name in names} == set(FOLDERS)
    report = convert(copy_of(layout, camvid, tmp_path / "copy", names), tmp_path / "out")
    assert set(report.differences) == {"frames missing"}
    assert sum(report.counts.values()) == len(names) == 8
    assert not report.complete


@each_layout
def test_what_is_the_release_is_plain_camvid(layout, drawn, tmp_path, monkeypatch):
    write_manifest(drawn(), tmp_path / "manifest")
    monkeypatch.setattr(data, "MANIFEST", tmp_path / "manifest")
    report = convert(copy_of(layout, drawn(zoom=2, to="big"), tmp_path / "copy"), tmp_path / "big2")
    assert (report.complete, report.name) == (False, f"CamVid 128x96 ({layout})")
    report = convert(tmp_path / "copy", tmp_path / "out", (48, 64))
    assert (report.complete, report.name) == (True, "CamVid")
    assert not (tmp_path / "out" / "dataset.json").exists()


# Sizes


def test_size_takes_nearest_labels_and_means_of_blocks(drawn, tmp_path):
    drawn(two_of_each()[::2], (360, 480))
    zoomed = drawn(two_of_each()[::2], (360, 480), zoom=2, to="big")  # 720x960, as the original
    source = copy_of("Kaggle", zoomed, tmp_path / "copy")
    command = ["data", "convert", str(source), str(tmp_path / "out"), "--size", "480x360"]
    assert main(command) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "in")
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["name"].startswith("CamVid ")


def test_size_of_another_factor_keeps_to_the_ids(drawn, tmp_path):
    source = copy_of("original", drawn(), tmp_path / "copy")
    for size in ("44x33", "80X60", "64x32"):
        out = tmp_path / size
        assert main(["data", "convert", str(source), str(out), "--size", size]) == 0
        assert verify(out).size == tuple(map(int, size.lower().split("x")))[::-1]
        for label in out.glob("*annot/*.png"):
            ids = read_label(tmp_path / "in" / label.relative_to(out))[0]
            assert set(read_label(label)[0].flat) <= set(ids.flat)


@pytest.mark.parametrize("size", ["480", "0x360", "480x360x3", "-480x360", "big", "1e3x10", ""])
def test_a_wrong_size_is_refused(size, tmp_path, capsys):
    assert main(["data", "convert", str(tmp_path), str(tmp_path / "out"), f"--size={size}"]) == 1
    assert f"--size {size}: write it as WIDTHxHEIGHT" in capsys.readouterr().err


# Where the copy is, and what it is called


@each_layout
def test_run_and_verify_name_the_command(layout, drawn, tmp_path, capsys):
    copy_of(layout, drawn(), tmp_path / "archive" / "CamVid")
    for folder in (tmp_path / "archive", tmp_path / "archive" / "CamVid"):
        run = ["run", "swiftnet", "--profile=smoke", "--data", str(folder), "--out=unused"]
        for command in (run, ["data", "verify", str(folder)]):
            assert main(command) == 1
            error = capsys.readouterr().err
            assert (
                f"layout of {layout}; convert it with `camvid-lang data convert {folder}" in error
            )
        with pytest.raises(InputError, match="data convert"):
            load_camvid(folder, "test")


@each_layout
@pytest.mark.parametrize("kind", ["zip", "gztar"])
def test_an_archive_is_converted(layout, kind, drawn, tmp_path):
    copy_of(layout, drawn(), tmp_path / "copy" / "a" / "CamVid")
    (tmp_path / "copy" / "__MACOSX" / "CamVid" / "train_labels").mkdir(parents=True)
    archive = shutil.make_archive(str(tmp_path / "archive"), kind, tmp_path / "copy")
    convert(archive, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "in")
    shutil.rmtree(tmp_path / "copy" / "__MACOSX")
    label = next((tmp_path / "copy").rglob("*_[LP].png"))
    label.write_bytes(label.read_bytes()[:99])
    archive = shutil.make_archive(str(tmp_path / "archive"), kind, tmp_path / "copy")
    with pytest.raises(InputError, match=f"{label.relative_to(tmp_path / 'copy')}: cannot be read"):
        convert(archive, tmp_path / "out2")


def test_other_names_of_folders_and_labels(drawn, tmp_path):
    source = copy_of("original", drawn(), tmp_path / "copy")
    (source / "label_colors.txt").unlink()
    shutil.move(source / "LabeledApproved_full", source / "inner" / "masks")
    (source / "701_StillsRaw_full").rename(source / "frames")
    convert(source, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "in")
    source = copy_of("Kaggle", tmp_path / "in", tmp_path / "copy2")
    (source / "class_dict.csv").unlink()
    for path in list(source.glob("*_labels/*.png")):
        path.rename(path.with_stem(path.stem.removesuffix("_L")))
    convert(source, tmp_path / "out2")
    assert contents(tmp_path / "out2") == contents(tmp_path / "in")


def test_codes_are_those_of_the_copy(drawn, tmp_path):
    source = copy_of("fastai", drawn(), tmp_path / "copy")
    (source / "codes.txt").write_text("\n".join(reversed(NAMES)) + "\n\n")
    for label in (source / "labels").iterdir():
        Image.fromarray(31 - np.array(Image.open(label))).save(label)
    convert(source, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "in")


# Splits


def test_frames_without_a_place_in_segnets_split_are_counted(drawn, tmp_path, capsys):
    more = ["test/own_1", "test/own_2", "test/own_3"]
    source = copy_of("fastai", drawn([*two_of_each(), *more]), tmp_path / "copy")
    assert main(["data", "convert", str(source), str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    assert "not in SegNet's split: 3 in train" in err
    assert "3 frames not in the release, such as train/own_1" in out
    assert all((tmp_path / "out" / f"{name}.png").is_file() for name in two_of_each())
    source = copy_of("original", drawn(more, to="own"), tmp_path / "copy2")
    with (
        pytest.warns(UserWarning, match="not in SegNet's split: 3 in train"),
        pytest.raises(InputError, match="no frame is in the val set of SegNet's split"),
    ):
        convert(source, tmp_path / "out2")


def test_kaggles_split_is_kept(drawn, tmp_path):
    moved = [name.replace("val/", "train/", 1) for name in two_of_each()]
    moved = [*moved[:3], moved[3].replace("train/", "val/"), "train/own_1", *moved[4:]]
    source = copy_of("Kaggle", drawn(moved), tmp_path / "copy")
    report = convert(source, tmp_path / "out")
    assert report.counts == {"train": 4, "val": 1, "test": 2}
    assert report.differences["frames of another split"] == [moved[2]]


# Defects: all are named, and nothing is written


@each_layout
def test_all_defects_are_named_and_nothing_is_left(layout, drawn, tmp_path):
    source = copy_of(layout, drawn(RELEASE[::80]), tmp_path / "copy")
    labels = sorted(source.rglob("*_[LP].png"))
    frames = [path for path in source.rglob("*.png") if path not in labels]
    frame_of = {path: next(f for f in frames if f.stem == path.stem[:-2]) for path in labels}
    labels[0].unlink()
    frame_of[labels[1]].unlink()
    labels[2].write_bytes(labels[2].read_bytes()[:200])
    frame_of[labels[3]].write_text("no image")
    Image.open(labels[4]).crop((0, 0, 64, 40)).save(labels[4])
    wrong = np.array(Image.open(labels[5]))
    wrong[7, 9] = wrong[20, 30] = 201
    Image.fromarray(wrong).save(labels[5])
    for path in (labels[6], frame_of[labels[6]]):
        Image.open(path).crop((0, 0, 32, 48)).save(path)
    before = listing(source)
    with pytest.raises(InputError) as error:
        convert(source, tmp_path / "out")
    for text in (
        f"{frame_of[labels[0]]}: no label {labels[0]}",
        f"{labels[1]}: no frame in {frame_of[labels[1]].parent}",
        f"{labels[2]}: cannot be read as an image",
        f"{frame_of[labels[3]]}: cannot be read as an image",
        f"{labels[4]}: label is (40, 64), its frame (48, 64)",
        f"{labels[5]}: colour (201, 201, 201) at row 7, column 9 is not one of",
        "(2 such pixels)",
        "frames are of several sizes (48x32, 48x64); give one (--size)",
    ):
        assert text in str(error.value)
    assert not (tmp_path / "out").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"in", "copy"}
    assert listing(source) == before


@each_layout
def test_unknown_colours_can_be_void(layout, drawn, tmp_path, capsys):
    source = copy_of(layout, drawn(), tmp_path / "copy")
    labels = sorted(source.rglob("*_[LP].png"))
    for path, count in ((labels[2], 3), (labels[4], 1)):
        label = np.array(Image.open(path))
        label[5, 10 : 10 + count] = 99
        Image.fromarray(label).save(path)
    command = ["data", "convert", str(source), str(tmp_path / "out")]
    assert main(command) == 1
    assert main([*command, "--unknown-void"]) == 0
    error = capsys.readouterr().err
    assert f"{labels[2]}: colour (99, 99, 99) at row 5, column 10" in error
    assert "4 pixels of unknown ids or colours are taken as void" in error
    for path in tmp_path.glob("in/*annot/*.png"):
        before, after = (
            read_label(tmp_path / f / path.relative_to(tmp_path / "in"))[0] for f in ("in", "out")
        )
        before[5, 10:13] = np.where(before[5, 10:13] != after[5, 10:13], VOID, before[5, 10:13])
        assert np.array_equal(before, after)


@pytest.mark.parametrize(
    ("layout", "file", "text", "message"),
    [
        ("fastai", "codes.txt", "Animal\nArchway\nCat", "'Cat' is not a class"),
        ("fastai", "codes.txt", "", "is not one of the ids of codes.txt"),
        ("fastai", "codes.txt", "Animal\nArchway", "is not one of the ids of codes.txt"),
    ],
)
def test_wrong_codes_and_colours_are_named(layout, file, text, message, drawn, tmp_path):
    source = copy_of(layout, drawn(), tmp_path / "copy")
    (source / file).write_text(text)
    with pytest.raises(InputError, match=message):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_places_that_are_refused(drawn, tmp_path, monkeypatch):
    source = copy_of("Kaggle", drawn(), tmp_path / "copies" / "a")
    (tmp_path / "empty").mkdir()
    for wrong, dest, message in (
        (source, tmp_path / "in", "in: not an empty folder"),
        (source, source / "train" / next((source / "train").iterdir()), "not an empty folder"),
        (source, source, "not an empty folder"),
        (tmp_path / "absent", tmp_path / "out", "absent: no such folder or archive"),
        (tmp_path / "empty", tmp_path / "out", "empty: not a copy of CamVid that is known"),
        (source / "class_dict.csv", tmp_path / "out", "not a zip or tar archive"),
    ):
        with pytest.raises(InputError, match=message):
            convert(wrong, dest)
    copy_of("fastai", tmp_path / "in", tmp_path / "copies" / "b")
    with pytest.raises(InputError, match=r"copies: holds 2 data sets \(.*a, .*b\); give one"):
        convert(tmp_path / "copies", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.chdir(source)
    convert(".", "../../empty")  # may exist
    assert contents(tmp_path / "empty") == contents(tmp_path / "in")
    convert(".", "new")  # may be inside
    assert contents(source / "new") == contents(tmp_path / "in")


# CamVid's own layout


def test_data_in_camvids_own_layout_is_resized_or_named(drawn, tmp_path):
    drawn()
    source = drawn(zoom=2, to="wrap/CamVid")
    with pytest.raises(InputError, match=f"the data set is in {source}; give that folder"):
        verify(source.parent)
    convert(source.parent, tmp_path / "out", (48, 64))
    assert contents(tmp_path / "out") == contents(tmp_path / "in")


def from_one(root):
    for path in root.glob("*annot/*.png"):
        Image.fromarray((np.array(Image.open(path)) + 1) % 12).save(path)


def test_ids_from_one_become_those_of_the_package(drawn, tmp_path, capsys, monkeypatch):
    drawn()
    from_one(drawn(to="shifted"))
    command = ["data", "convert", str(tmp_path / "shifted")]
    assert main([*command, str(tmp_path / "out"), "--first-id=1", "--void=0"]) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "in")
    # As its dataset.json says.
    (tmp_path / "shifted" / "dataset.json").write_text('{"first_id": 1, "void": 0}')
    for out, more in (("out2", ()), ("out5", ("--unknown-void",))):
        assert main([*command, str(tmp_path / out), *more]) == 0
        assert contents(tmp_path / out) == contents(tmp_path / "in")
    # Those of the release are recognised.
    (tmp_path / "shifted" / "dataset.json").unlink()
    write_manifest(tmp_path / "in", tmp_path / "manifest")
    monkeypatch.setattr(data, "MANIFEST", tmp_path / "manifest")
    for out, more in (("out3", ()), ("out4", ("--unknown-void",))):
        assert main([*command, str(tmp_path / out), *more]) == 0
        assert "6 labels count ids from 1 with 0 = void" in capsys.readouterr().err
        assert verify(tmp_path / out).complete
    # Elsewhere such options contradict the colours or codes.
    for layout in LAYOUTS:
        source = copy_of(layout, tmp_path / "in", tmp_path / layout)
        assert main(["data", "convert", str(source), str(tmp_path / "x"), "--first-id=1"]) == 1
        assert "--void and --first-id are for ids in trainannot/" in capsys.readouterr().err
