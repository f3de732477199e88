"""Data on disk and in memory: every defect is named, images and labels stay together."""

import io
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
from conftest import write_manifest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from camvid_lang.cli import main
from camvid_lang.data import augment
from camvid_lang.data import camvid as data
from camvid_lang.data.augment import batches, number_of_batches, random_crops
from camvid_lang.data.camvid import Frames, load_camvid, read_image, verify
from camvid_lang.data.classes import VOID
from camvid_lang.data.convert import convert
from camvid_lang.data.download import download_camvid
from camvid_lang.errors import InputError


def rewrite(path, pixels):
    Image.fromarray(pixels).save(path)


def problems_of(root):
    """All problems, after checking that `summary` has them and that loading fails."""
    report = verify(root)
    assert report.problems
    assert not report.complete
    assert all(problem in report.summary() for problem in report.problems)
    with pytest.raises(InputError):
        [load_camvid(root, split) for split in ("trainval", "test")]
    return "\n".join(report.problems)


# Files and pairs


def test_a_valid_set_is_verified_and_loaded(tiny_dataset):
    report = verify(tiny_dataset)
    assert (report.problems, report.differences) == ((), {})
    assert not report.complete  # not CamVid
    assert report.counts == {"train": 6, "val": 2, "test": 3}
    assert report.size == (96, 128)
    assert "6 train, 2 val, 3 test frames, 128x96" in report.summary()
    frames = load_camvid(tiny_dataset)
    assert len(frames) == 8
    assert (frames.names[0], frames.names[-1]) == ("train/train_000", "val/val_001")
    assert frames.images.shape == (8, 3, 96, 128)
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


def test_a_loaded_split_is_kept_until_a_file_changes(tiny_dataset):
    first = load_camvid(tiny_dataset, "val")
    assert load_camvid(str(tiny_dataset), "val") is first
    rewrite(tiny_dataset / "val" / "val_001.png", np.zeros((96, 128, 3), np.uint8))
    second = load_camvid(tiny_dataset, "val")
    assert not second.images[1].any()
    assert second.digest != first.digest


def test_the_digest_is_of_the_content(tiny_dataset, make_dataset):
    frames = load_camvid(tiny_dataset, "train")
    copy = make_dataset("copy", suffix=".bmp")
    assert load_camvid(copy, "train").digest == frames.digest
    order = torch.tensor([1, 0, 2, 3, 4, 5])
    names = tuple(frames.names[i] for i in order)
    changed = frames.labels.clone()
    changed[5, -1, -1] ^= 1
    others = [
        replace(frames, names=names),
        Frames(frames.images[order], frames.labels[order], names),
        replace(frames, labels=changed),
        replace(frames, images=frames.images.flip(-1)),
        replace(frames, images=frames.images.view(6, 3, 128, 96)),
        Frames(frames.images[:5], frames.labels[:5], frames.names[:5]),
    ]
    assert len({frames.digest, *(other.digest for other in others)}) == 7


@pytest.mark.parametrize("suffix", [".webp", ".jpg", ".jpeg", ".bmp", ".PNG"])
def test_frames_in_other_formats(make_dataset, suffix):
    root = make_dataset(suffix=suffix)
    for entry in (".DS_Store", "._train_000.png", "train_000.png.part", "Thumbs.db"):
        (root / "train" / entry).write_bytes(b"x")  # is skipped
        (root / "trainannot" / entry).write_bytes(b"x")
    (root / "__MACOSX" / "train").mkdir(parents=True)
    assert verify(root).problems == ()
    assert len(load_camvid(root, "test")) == 3


def test_all_defects_are_named_in_one_report(tiny_dataset):
    train, annot = tiny_dataset / "train", tiny_dataset / "trainannot"
    label = np.array(Image.open(annot / "train_000.png"))
    (annot / "train_000.png").unlink()
    (tiny_dataset / "test" / "test_000.png").unlink()
    wrong = label.copy()
    wrong[0, :3] = (12, 40, 255)
    rewrite(annot / "train_001.png", wrong)
    whole = (train / "train_002.png").read_bytes()
    (train / "train_002.png").write_bytes(whole[: len(whole) // 2])
    (annot / "train_003.png").write_text("not an image")
    rewrite(annot / "train_004.png", np.zeros((96, 128, 3), np.uint8))
    rewrite(annot / "train_005.png", label[:50])
    rewrite(tiny_dataset / "val" / "val_000.png", np.zeros((90, 128, 3), np.uint8))
    rewrite(tiny_dataset / "valannot" / "val_000.png", label[:90])
    rewrite(tiny_dataset / "val" / "val_001.jpg", np.zeros((96, 128, 3), np.uint8))
    path = tiny_dataset / "testannot" / "test_001.png"
    Image.open(path).save(path.with_suffix(".jpg"))
    path.unlink()
    found = problems_of(tiny_dataset)
    for part in (
        f"train/train_000.png: no label {annot}/train_000.png",
        f"testannot/test_000.png: no frame in {tiny_dataset}/test",
        "trainannot/train_001.png: ids 12, 40 are not in 0..11 (void is 11; found 0..255)",
        "train/train_002.png: cannot be read as an image",
        "trainannot/train_003.png: cannot be read as an image",
        "trainannot/train_004.png: black alone can be id 0 or the colour of void",
        "trainannot/train_005.png: label is (50, 128), its frame (96, 128)",
        "val/val_000.png: frame is 90x128, most are 96x128",
        "val/val_001.png: same name as val_001.jpg",
        f"test/test_001.png: no label {tiny_dataset}/testannot/test_001.png",
    ):
        assert f"{tiny_dataset}/{part}" in found, part
    assert len(found.splitlines()) == 10


def test_loading_names_eight_problems_and_counts_the_others(make_dataset):
    root = make_dataset(train=12)
    for path in (root / "trainannot").iterdir():
        rewrite(path, np.full((96, 128), 77, np.uint8))
    with pytest.raises(InputError) as caught:
        load_camvid(root, "train")
    text = str(caught.value)
    assert text.count("id 77 is not in 0..11") == 8
    assert f"; and 4 more; `python -m camvid_lang data verify {root}` lists them all" in text


def test_folder_defects(tiny_dataset, tmp_path):
    for folder in ("val", "testannot"):
        shutil.rmtree(tiny_dataset / folder)
    (tiny_dataset / "val").mkdir()
    assert verify(tiny_dataset).problems == tuple(
        f"{tiny_dataset}/{folder}: no such folder, or no .png files in it"
        for folder in ("val", "testannot")
    )
    with pytest.raises(InputError, match=r"no such folder; .* `camvid-lang data download"):
        load_camvid(tmp_path / "nowhere", "train")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="no such folder"):
        verify(tmp_path / "file")
    (tmp_path / "outer").mkdir()
    tiny_dataset.rename(tmp_path / "outer" / "CamVid")
    with pytest.raises(InputError, match=r"is in .*CamVid; give that"):
        verify(tmp_path / "outer")


def test_one_name_in_two_unicode_forms_is_one_name(tiny_dataset):
    for folder, form in (("train", "NFD"), ("trainannot", "NFC")):
        for number, word in ((0, "café"), (1, "ガード"), (2, "Å")):
            name = unicodedata.normalize(form, f"{word}.png")
            (tiny_dataset / folder / f"train_00{number}.png").rename(tiny_dataset / folder / name)
    assert verify(tiny_dataset).problems == ()
    assert "train/café" in load_camvid(tiny_dataset, "train").names
    again = tiny_dataset / "train" / "café.png"
    shutil.copy(tiny_dataset / "train" / "train_003.png", again)
    assert "same name as café.png" in unicodedata.normalize("NFC", problems_of(tiny_dataset))


def test_the_name_is_from_dataset_json(tiny_dataset):
    card = tiny_dataset / "dataset.json"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        card.write_text('{"name": "Straße", "counts": {"train": 6}}', encoding=encoding)
        assert (verify(tiny_dataset).problems, verify(tiny_dataset).name) == ((), "Straße")
    card.write_text("{}")
    assert verify(tiny_dataset).name == tiny_dataset.name
    for text in ("[1, 2]", '{"name": ', "[" * 100_000):
        card.write_text(text)
        assert verify(tiny_dataset).problems[0].startswith(f"{card}: ")


# The release


@pytest.fixture
def release(tiny_dataset, tmp_path, monkeypatch):
    """A data set of which the manifest is that of the release."""
    write_manifest(tiny_dataset, tmp_path / "manifest")
    monkeypatch.setattr(data, "MANIFEST", tmp_path / "manifest")
    monkeypatch.setattr(data, "SIZE", (96, 128))
    assert verify(tiny_dataset).complete
    return tiny_dataset


def shift(path):
    rewrite(path, (np.array(Image.open(path)) + 1) % 12)


def test_labels_shifted_by_one_are_named_and_read_as_such(release):
    before = {split: load_camvid(release, split) for split in ("trainval", "test")}
    for path in [*(release / "trainannot").iterdir(), release / "testannot" / "test_000.png"]:
        shift(path)
    report = verify(release)
    assert (report.name, report.problems, report.complete) == ("CamVid", (), False)
    (kind,) = report.differences
    assert kind == "labels shifted by one (void is 0; they are read as such)"
    assert report.differences[kind][:2] == ["testannot/test_000", "trainannot/train_000"]
    assert f"release: 7 {kind}, such as testannot/test_000, trainannot/" in report.summary()
    assert "not the CamVid release" in report.summary()
    with pytest.warns(UserWarning, match="6 labels count ids from 1 with 0 = void"):
        assert load_camvid(release, "trainval").digest == before["trainval"].digest
    with pytest.warns(UserWarning, match=": 1 labels count"):
        assert load_camvid(release, "test").digest == before["test"].digest


def test_an_edited_label_next_to_shifted_ones_is_refused(release):
    edited = release / "trainannot" / "train_003.png"
    ids = np.array(Image.open(edited))
    ids[50, 60] = (ids[50, 60] + 1) % 12
    rewrite(edited, ids)
    assert verify(release).differences == {"labels that differ": ["trainannot/train_003"]}
    assert "1 labels that differ, such as trainannot/train_003\n" in verify(release).summary()
    before = load_camvid(release, "train").digest
    for path in (release / "trainannot").iterdir():
        shift(path)
    problem = f"{edited}: labels next to this one count ids from 1 with 0 = void, but this one"
    (found,) = verify(release).problems
    assert found.startswith(problem)
    with pytest.raises(InputError, match=problem):
        load_camvid(release, "train")
    with pytest.raises(InputError, match=problem):
        convert(release, release.with_name("out"))
    (release / "dataset.json").write_text('{"first_id": 1, "void": 0}')
    assert load_camvid(release, "train").digest == before


def test_other_images_are_named_by_kind(release):
    for name in ("val_000", "val_001"):
        path = release / "val" / f"{name}.png"
        suffix = {"val_000": ".jpg", "val_001": ".webp"}[name]
        Image.open(path).save(path.with_suffix(suffix), quality=95)
        path.unlink()
    rewrite(release / "test" / "test_000.png", np.zeros((96, 128, 3), np.uint8))
    lossless = release / "test" / "test_001.webp"
    Image.open(lossless.with_suffix(".png")).save(lossless, lossless=True)
    lossless.with_suffix(".png").unlink()
    assert verify(release).differences == {
        "images compressed with loss": ["val/val_000", "val/val_001"],
        "images that differ": ["test/test_000"],
    }


def test_resized_frames_and_labels_are_named_by_size(release):
    for folder in data.FOLDERS:
        for path in [*(release / folder).iterdir(), *(release / f"{folder}annot").iterdir()]:
            Image.open(path).resize((64, 48), Image.Resampling.NEAREST).save(path)
    report = verify(release)
    assert (report.size, report.problems, report.complete) == ((48, 64), (), False)
    assert {kind: len(names) for kind, names in report.differences.items()} == {
        "images of another size (64x48, not 128x96)": 11,
        "labels of another size (64x48, not 128x96)": 11,
    }
    assert len(load_camvid(release, "train")) == 6


def test_the_command_refuses_what_is_not_the_camvid_that_it_claims_to_be(release):
    command = ["data", "verify", str(release)]
    assert main(command) == 0
    Image.new("RGB", (128, 96)).save(release / "val" / "val_000.png")
    assert main(command) == 1
    (release / "dataset.json").write_text('{"name": "CamVid, edited"}')
    assert main(command) == 0
    (release / "val" / "val_000.png").unlink()
    assert main(command) == 1


def test_a_file_replaced_with_equal_size_and_time_is_read_again(release):
    path = release / "valannot" / "val_000.png"
    before, frames = path.stat(), load_camvid(release, "val")
    stream = io.BytesIO()
    Image.open(path).save(stream, "BMP")  # uncompressed: of equal size
    content = bytearray(stream.getvalue())
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    same = load_camvid(release, "val")
    assert same.digest == frames.digest
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert load_camvid(release, "val").digest != same.digest
    assert verify(release).differences == {"labels that differ": ["valannot/val_000"]}


# How ids are counted


def count_from_one(root, void=0):
    for path in root.glob("*annot/*.png"):
        ids = np.array(Image.open(path))
        rewrite(path, np.where(ids == VOID, void, ids + 1).astype(np.uint8))


@pytest.mark.parametrize("void", [0, 12, 255])
def test_dataset_json_says_how_ids_are_counted(tiny_dataset, void, capsys):
    digest = load_camvid(tiny_dataset, "train").digest
    count_from_one(tiny_dataset, void)
    if void == 12:
        with pytest.raises(InputError, match=r"id 12 is not in .*dataset.json: first_id 1, "):
            load_camvid(tiny_dataset, "train")
    options = {"first_id": 1, "void": void}
    (tiny_dataset / "dataset.json").write_text(json.dumps(options))
    assert load_camvid(tiny_dataset, "train").digest == digest
    assert verify(tiny_dataset).problems == ()
    assert verify(tiny_dataset, first_id=2, void=0).problems
    (tiny_dataset / "dataset.json").unlink()
    command = ["data", "verify", str(tiny_dataset), "--first-id", "1", "--void", str(void)]
    assert main(command) == 0
    assert "no problems" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("card", "message"),
    [
        (
            {"void": 0},
            "void 0 is the id of sky if ids count from 0; for ids from 1 give first_id 1",
        ),
        ({"void": "0"}, "void '0', first_id 0, unknown_void False: a whole number"),
        ({"first_id": None}, "first_id None, unknown_void False: a whole number"),
        (
            {"unknown_void": 1},
            "unknown_void 1: a whole number in 0..65535, one in 0..200, and true or",
        ),
    ],
)
def test_contradicting_counts_are_refused(tiny_dataset, card, message):
    (tiny_dataset / "dataset.json").write_text(json.dumps(card))
    assert message in problems_of(tiny_dataset)


def test_unknown_ids_are_void_where_that_is_chosen(tiny_dataset, capsys):
    path = tiny_dataset / "trainannot" / "train_000.png"
    ids = np.array(Image.open(path))
    ids[:2] = 254
    rewrite(path, ids)
    with pytest.raises(InputError, match="id 254"):
        load_camvid(tiny_dataset, "train")
    (tiny_dataset / "dataset.json").write_text('{"unknown_void": true}')
    note = "256 pixels of unknown ids or colours are taken as void"
    with pytest.warns(UserWarning, match=note):
        assert (load_camvid(tiny_dataset, "train").labels[0, :2] == VOID).all()
    assert f"note: {note}" in verify(tiny_dataset).summary()
    (tiny_dataset / "dataset.json").unlink()
    assert main(["data", "verify", str(tiny_dataset), "--unknown-void"]) == 0
    assert note in capsys.readouterr().out


@pytest.mark.parametrize("key", ["first-id", "Void", "class"])
def test_unknown_keys_of_dataset_json_are_refused(tiny_dataset, key):
    (tiny_dataset / "dataset.json").write_text(json.dumps({"name": "x", key: 1}))
    with pytest.raises(InputError, match=f"dataset.json: unknown key '{key}' .known: name, note"):
        load_camvid(tiny_dataset, "train")


def test_frames_missing_moved_or_foreign_are_named(release):
    for suffix in ("", "annot"):
        (release / f"train{suffix}" / "train_000.png").unlink()
        moved = release / f"test{suffix}" / "test_001.png"
        moved.rename(release / f"train{suffix}" / "test_001.png")
        shutil.copy(release / f"val{suffix}" / "val_000.png", release / f"val{suffix}" / "x.png")
    report = verify(release)
    assert (report.problems, report.complete) == ((), False)
    assert report.differences == {
        "frames missing": ["test/test_001", "train/train_000"],
        "frames of another split": ["train/test_001"],
        "frames not in the release": ["val/x"],
    }
    with pytest.warns(UserWarning, match="not the CamVid release: 1 frames missing"):
        assert len(load_camvid(release, "test")) == 2


# Single files


def test_read_image_converts_or_refuses(tmp_path):
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    rewrite(tmp_path / "grey.png", grey)
    assert np.array_equal(read_image(tmp_path / "grey.png"), np.stack([grey] * 3, axis=-1))
    rgba = np.dstack([grey, grey + 1, grey + 2, np.zeros_like(grey)])
    rewrite(tmp_path / "alpha.png", rgba)
    assert np.array_equal(read_image(tmp_path / "alpha.png"), rgba[..., :3])
    palette = Image.fromarray(grey % 3).convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    palette.save(tmp_path / "palette.png")
    assert read_image(tmp_path / "palette.png")[0, 1].tolist() == [40, 50, 60]
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(rgba[..., :3]).save(tmp_path / "turned.png", exif=exif)
    assert read_image(tmp_path / "turned.png").shape == (6, 8, 3)
    rewrite(tmp_path / "deep.png", grey.astype(np.uint16) * 1000)
    with pytest.raises(InputError, match=r"deep\.png: image mode I;16, but an 8-bit image"):
        read_image(tmp_path / "deep.png")
    with pytest.raises(InputError, match=r"none\.png: .*No such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(InputError, match="Is a directory"):
        read_image(tmp_path)
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"empty\.png: cannot be read as an image"):
        read_image(tmp_path / "empty.png")


def test_decompression_bombs_are_a_problem(tiny_dataset, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert "exceeds limit" in problems_of(tiny_dataset)


# Crops and batches


@given(
    high=st.integers(1, 12), wide=st.integers(1, 15), count=st.integers(1, 5), seed=st.integers(0)
)
@settings(max_examples=60, deadline=None)
def test_crops_keep_image_and_label_together(high, wide, count, seed):
    rows, columns = torch.meshgrid(torch.arange(12), torch.arange(15), indexing="ij")
    frame = torch.arange(count)[:, None, None].expand(count, 12, 15)
    # Every pixel holds its own frame, row and column.
    images = torch.stack([frame, rows.expand_as(frame), columns.expand_as(frame)], dim=1)
    labels = frame * 1000 + rows * 20 + columns
    generator = torch.Generator().manual_seed(seed % 2**63)
    crops, ids = random_crops(images, labels, (high, wide), generator)
    assert crops.shape == (count, 3, high, wide)
    assert torch.equal(ids, crops[:, 0] * 1000 + crops[:, 1] * 20 + crops[:, 2])
    assert torch.equal(crops[:, 0], torch.arange(count)[:, None, None].expand_as(ids))
    assert bool((crops[:, 1].diff(dim=1) == 1).all())  # rows stay in order, without gaps
    steps = crops[:, 2].diff(dim=2)
    assert wide == 1 or bool((steps == steps[:, :1, :1]).all())
    assert bool((steps.abs() == 1).all())  # columns ascend or, flipped, descend


def test_crops_are_random_and_follow_the_seed():
    images = torch.arange(8 * 9).reshape(1, 1, 8, 9).expand(400, 3, 8, 9)

    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return random_crops(images, images[:, 0], 7, generator)[1]

    once = draw(3)
    assert torch.equal(once, draw(3))
    assert not torch.equal(once, draw(4))
    assert len({tuple(ids[0, :2].tolist()) for ids in once}) == 2 * 3 * 2  # all tops, lefts, flips
    flipped = (once[:, 0, 1] < once[:, 0, 0]).float().mean()
    assert 0.4 < flipped < 0.6


def test_a_crop_larger_than_the_frames_is_refused():
    images, labels = torch.zeros(2, 3, 20, 40), torch.zeros(2, 20, 40)
    with pytest.raises(InputError, match="crop 30x30 does not fit into frames of 20x40"):
        random_crops(images, labels, 30, torch.Generator())
    with pytest.raises(InputError, match="crop 0x5"):
        random_crops(images, labels, (0, 5), torch.Generator())


def numbered_frames(count):
    values = torch.arange(count, dtype=torch.uint8)
    images = values[:, None, None, None].expand(count, 3, 6, 6).contiguous()
    return Frames(images, images[:, 0].clone(), tuple(str(i) for i in range(count)))


@given(count=st.integers(1, 40), batch_size=st.integers(1, 12), seed=st.integers(0, 2**31))
@settings(max_examples=80, deadline=None)
def test_batches_hold_every_frame_once(count, batch_size, seed):
    frames, generator = numbered_frames(count), torch.Generator().manual_seed(seed)
    if count == 1 and batch_size > 1:
        with pytest.raises(InputError, match="at least two frames"):
            next(batches([frames], batch_size, 4, generator))
        return
    epoch = [parts[0] for parts in batches([frames], batch_size, 4, generator)]
    assert len(epoch) == number_of_batches(count, batch_size)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    left_out = 1 if batch_size > 1 and count % batch_size == 1 else 0
    seen = torch.cat([images[:, 0, 0, 0] for images, _ in epoch])
    assert seen.tolist() == order[: count - left_out].tolist()
    assert all(len(images) == batch_size for images, _ in epoch[:-1])
    for images, labels in epoch:
        assert images.shape == (len(labels), 3, 4, 4)
        assert torch.equal(images[:, 0], labels)


def test_batches_of_several_sets_have_each_frame_once_with_its_own_labels():
    sets = [numbered_frames(count) for count in (5, 3, 7)]
    epoch = list(batches(sets, 4, 4, torch.Generator().manual_seed(0)))
    assert [sum(len(images) for images, _ in parts.values()) for parts in epoch] == [4, 4, 4, 3]
    assert any(len(parts) > 1 for parts in epoch)
    for number, frames in enumerate(sets):
        seen = [parts[number] for parts in epoch if number in parts]
        assert sorted(torch.cat([x[:, 0, 0, 0] for x, _ in seen]).tolist()) == [*range(len(frames))]
        assert all(torch.equal(images[:, 0], labels) for images, labels in seen)


def test_batches_differ_between_epochs():
    frames, generator = numbered_frames(30), torch.Generator().manual_seed(1)
    first, second = (
        torch.cat([parts[0][1] for parts in batches([frames], 6, 0, generator)]) for _ in range(2)
    )
    assert not torch.equal(first, second)
    assert first.shape == (30, 6, 6)
    with pytest.raises(InputError, match="batch_size 0"):
        number_of_batches(4, 0)


def test_each_process_needs_two_frames_of_a_batch(monkeypatch):
    monkeypatch.setattr(augment, "world_size", lambda: 2)
    assert [number_of_batches(count, 4) for count in (4, 7, 8, 12)] == [1, 1, 2, 3]
    with pytest.raises(InputError, match="batch_size 3: 2 processes need 4 at least"):
        number_of_batches(6, 3)


@pytest.mark.camvid
def test_the_real_camvid_is_complete_and_checked_quickly(camvid):
    start = time.process_time()  # of all threads: half of it on two cores
    report = verify(camvid)
    assert time.process_time() - start < 30
    assert (report.name, report.complete, report.size) == ("CamVid", True, (360, 480))
    assert report.counts == {"train": 367, "val": 101, "test": 233}
    assert download_camvid(camvid).complete  # nothing is missing, so nothing is downloaded
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frames = load_camvid(camvid, "test", limit=24)
    assert frames.images.shape == (24, 3, 360, 480)
    assert int(frames.labels.max()) <= VOID


@pytest.fixture
def own_camvid(camvid, tmp_path):
    """The real CamVid with labels of its own."""
    root = tmp_path / "own"
    for split in data.FOLDERS:
        shutil.copytree(camvid / f"{split}annot", root / f"{split}annot")
        (root / split).symlink_to(camvid / split)
    return root


@pytest.mark.camvid
def test_changed_labels_of_the_real_camvid_are_named(own_camvid, capsys):
    edited = own_camvid / "valannot" / "0016E5_07959.png"
    ids = np.array(Image.open(edited))
    ids[359, 479] = (ids[359, 479] + 1) % 12
    rewrite(edited, ids)
    assert verify(own_camvid).differences == {"labels that differ": ["valannot/0016E5_07959"]}
    assert main(["data", "verify", str(own_camvid)]) == 1
    assert "1 labels that differ, such as valannot/0016E5_07959\n" in capsys.readouterr().out
