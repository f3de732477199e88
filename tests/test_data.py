"""The data set: every defect named, and crops and batches that keep what belongs together."""

import json
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from camvid_lang.data import camvid as data
from camvid_lang.data import camvid as layout
from camvid_lang.data import camvid as manifest
from camvid_lang.data import camvid as pictures
from camvid_lang.data.camvid import Frames
from camvid_lang.data.classes import CLASSES, GROUPS, ORIGINAL_COLOURS, VOID
from camvid_lang.errors import InputError


def problems_of(root: Path) -> str:
    """All problems as one text, once `verify` and `load` agree that there are some."""
    report = data.verify(root)
    assert report.problems
    assert not report.complete
    assert all(problem in report.summary() for problem in report.problems)
    assert not any("\n" in problem for problem in report.problems)
    broken = []
    for split in ("trainval", "test"):
        try:
            data.load(root, split)
        except InputError as error:
            broken.append(str(error))
    assert broken
    assert not any("\n" in text for text in broken)
    return "\n".join(report.problems)


def rewrite(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(path)


def test_a_sound_set_is_verified_and_loaded(tiny_dataset: Path) -> None:
    report = data.verify(tiny_dataset)
    assert (report.problems, report.missing, report.complete) == ((), (), True)
    assert report.counts == {"train": 6, "val": 2, "test": 3}
    assert report.size == (96, 128)
    assert "6 train, 2 val, 3 test" in report.summary()
    frames = data.load(tiny_dataset, "trainval")
    assert len(frames) == 8
    assert frames.names[0] == "train/train_000"
    assert frames.names[-1] == "val/val_001"
    assert frames.images.shape == (8, 3, 96, 128)
    assert frames.images.dtype == frames.labels.dtype == torch.uint8
    for index, name in enumerate(frames.names):
        split, stem = name.split("/")
        image = np.array(Image.open(tiny_dataset / split / f"{stem}.png"))
        label = np.array(Image.open(tiny_dataset / f"{split}annot" / f"{stem}.png"))
        assert np.array_equal(frames.images[index].permute(1, 2, 0).numpy(), image)
        assert np.array_equal(frames.labels[index].numpy(), label)
    moved = frames.to("cpu")
    assert torch.equal(moved.labels, frames.labels)


def test_limit_takes_evenly_spaced_frames(tiny_dataset: Path) -> None:
    assert data.load(tiny_dataset, "train", limit=3).names == (
        "train/train_000",
        "train/train_002",
        "train/train_004",
    )
    assert len(data.load(tiny_dataset, "train", limit=60)) == 6
    with pytest.raises(InputError, match="limit 0"):
        data.load(tiny_dataset, "train", limit=0)


def test_pairs_are_matched_by_name_not_by_order(tiny_dataset: Path) -> None:
    pairs = data.find_pairs(tiny_dataset, "trainval")
    assert [frame.stem for frame, _ in pairs] == [label.stem for _, label in pairs]
    assert len(pairs) == 8
    (tiny_dataset / "train" / "train_000.png").rename(tiny_dataset / "train" / "zzz.png")
    with pytest.raises(InputError, match=r"train/zzz\.png: no label .*train_000\.png: no frame"):
        data.find_pairs(tiny_dataset, "train")
    with pytest.raises(InputError, match="split 'dev' is unknown: train, val, trainval, test"):
        data.find_pairs(tiny_dataset, "dev")


def test_hidden_and_partial_files_do_not_count(tiny_dataset: Path) -> None:
    for entry in (".DS_Store", "._train_000.png", "train_000.png.part", "Thumbs.db", "list.txt"):
        (tiny_dataset / "train" / entry).write_bytes(b"x")
        (tiny_dataset / "trainannot" / entry).write_bytes(b"x")
    assert data.verify(tiny_dataset).complete


@pytest.mark.parametrize("suffix", [".webp", ".jpg", ".jpeg", ".bmp", ".PNG"])
def test_frames_in_other_containers(make_dataset, suffix: str) -> None:
    root = make_dataset(suffix=suffix)
    assert data.verify(root).complete
    assert len(data.load(root, "test")) == 3


def test_all_defects_are_named_in_one_report(tiny_dataset: Path) -> None:
    train, annot = tiny_dataset / "train", tiny_dataset / "trainannot"
    label = np.array(Image.open(annot / "train_000.png"))
    (annot / "train_000.png").unlink()  # frame without label
    (tiny_dataset / "test" / "test_000.png").unlink()  # label without frame
    wrong = label.copy()
    wrong[0, :3] = (12, 40, 255)
    rewrite(annot / "train_001.png", wrong)
    whole = (train / "train_002.png").read_bytes()
    (train / "train_002.png").write_bytes(whole[: len(whole) // 2])
    (annot / "train_003.png").write_text("not a picture")
    rewrite(annot / "train_004.png", np.zeros((96, 128, 3), np.uint8))
    rewrite(annot / "train_005.png", label[:50])
    rewrite(tiny_dataset / "val" / "val_000.png", np.zeros((90, 128, 3), np.uint8))
    rewrite(tiny_dataset / "valannot" / "val_000.png", label[:90])
    Image.fromarray(np.zeros((96, 128, 3), np.uint8)).save(tiny_dataset / "val" / "val_001.jpg")
    found = problems_of(tiny_dataset)
    for part in (
        "train/train_000.png: no label trainannot/train_000.png",
        "testannot/test_000.png: no frame test/test_000.png",
        "trainannot/train_001.png: label ids 12, 40, 255 where 0..11 are known",
        "train/train_002.png: damaged picture",
        "trainannot/train_003.png: unreadable picture",
        "trainannot/train_004.png: mode RGB where a grey or palette picture",
        "train/train_005: label is 50x128, its frame 96x128",
        "val/val_000: frame is 90x128, most are 96x128",
        "val/val_001.png: same name as val_001.jpg",
    ):
        assert part in found, part
    assert len(found.splitlines()) == 9


def test_load_names_eight_problems_and_counts_the_others(make_dataset) -> None:
    root = make_dataset(train=12)
    for path in (root / "trainannot").iterdir():
        rewrite(path, np.full((96, 128), 77, np.uint8))
    with pytest.raises(InputError) as caught:
        data.load(root, "train")
    text = str(caught.value)
    assert text.count("label id 77") == 8
    assert f"; and 4 more; `python -m camvid_lang data verify {root}` lists them all" in text


def test_folder_defects(tiny_dataset: Path, tmp_path: Path) -> None:
    for path in (tiny_dataset / "val").iterdir():
        path.unlink()
    for path in (tiny_dataset / "testannot").iterdir():
        path.unlink()
    (tiny_dataset / "testannot").rmdir()
    assert data.verify(tiny_dataset).problems == (
        "val: empty folder, no pictures in it",
        "testannot: no such folder",
    )
    with pytest.raises(
        InputError, match=r"no such folder; fetch CamVid with `sh data_download\.sh"
    ):
        data.load(tmp_path / "nowhere", "train")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="not a folder"):
        data.verify(tmp_path / "file")
    with pytest.raises(InputError, match="only train, val, test are folders"):
        data.verify(tiny_dataset, ("trainval",))
    outer = tmp_path / "outer"
    outer.mkdir()
    tiny_dataset.rename(outer / "CamVid")
    with pytest.raises(InputError, match=r"lies in .*CamVid: give that"):
        data.verify(outer)


def test_a_label_that_is_no_png_is_told(tiny_dataset: Path) -> None:
    path = tiny_dataset / "valannot" / "val_000.png"
    Image.open(path).save(path.with_suffix(".bmp"))
    path.unlink()
    assert "valannot/val_000.bmp: a label must be a .png" in problems_of(tiny_dataset)


def test_dataset_json_is_checked(tiny_dataset: Path) -> None:
    card = tiny_dataset / "dataset.json"
    counts = {"train": 6, "val": 2, "test": 3}
    card.write_text(json.dumps({"name": "toy", "counts": counts, "size": [96, 128], "note": "n"}))
    report = data.verify(tiny_dataset)
    assert (report.name, report.complete) == ("toy", True)
    card.write_text(json.dumps({"counts": counts | {"train": 7}, "size": [96, 200]}))
    assert problems_of(tiny_dataset).splitlines() == [
        "train: 6 frames with labels where dataset.json tells of 7",
        "dataset.json: size [96, 200] where frames are 96x128",
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"counts": {"train": -1}}', "key 'counts'"),
        ('{"counts": {"dev": 1}}', "key 'counts'"),
        ('{"counts": {"train": true}}', "key 'counts'"),
        ('{"counts": [1]}', "key 'counts'"),
        ('{"size": [96]}', "key 'size'"),
        ('{"size": "96x128"}', "key 'size'"),
        ('{"name": 3}', "key 'name'"),
        ("[1, 2]", "an object"),
        ('{"name": ', "unreadable"),
        ("[" * 100_000, "unreadable"),
    ],
)
def test_malformed_dataset_json(tiny_dataset: Path, text: str, told: str) -> None:
    (tiny_dataset / "dataset.json").write_text(text)
    found = problems_of(tiny_dataset)
    assert found.startswith("dataset.json: ")
    assert told in found


def test_without_decoding_only_names_and_headers_are_checked(tiny_dataset: Path) -> None:
    path = tiny_dataset / "train" / "train_000.png"
    path.write_bytes(path.read_bytes()[:200])
    assert data.verify(tiny_dataset, decode=False).complete
    assert not data.verify(tiny_dataset).complete


def test_a_subset_of_camvid_is_usable_with_a_warning(tiny_dataset: Path) -> None:
    release = [key for key in manifest.read_manifest() if key.startswith("train/")]
    strayed = next(key for key in manifest.read_manifest() if key.startswith("test/"))
    for index, key in enumerate([*release[:5], strayed]):
        name = key.partition("/")[2]
        for folder in ("train", "trainannot"):
            path = tiny_dataset / folder / f"train_{index:03d}.png"
            path.rename(path.with_name(f"{name}.png"))
    report = data.verify(tiny_dataset, ("train",))
    assert report.name == "CamVid"
    assert report.problems == ()
    assert not report.complete
    assert len(report.missing) == 362 + 1
    assert f"train/{strayed.partition('/')[2]}: belongs to test" in report.missing
    assert "usable, but not the whole release: 363" in report.summary()
    assert len(report.summary().splitlines()) < 15
    with pytest.warns(UserWarning, match="not the whole CamVid release"):
        assert len(data.load(tiny_dataset, "train")) == 6


def test_read_image_converts_and_refuses(tmp_path: Path) -> None:
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    rewrite(tmp_path / "grey.png", grey)
    assert np.array_equal(data.read_image(tmp_path / "grey.png"), np.stack([grey] * 3, axis=-1))
    rgba = np.dstack([grey, grey + 1, grey + 2, np.zeros_like(grey)])
    rewrite(tmp_path / "alpha.png", rgba)
    assert np.array_equal(data.read_image(tmp_path / "alpha.png"), rgba[..., :3])
    palette = Image.fromarray(grey % 3).convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    palette.save(tmp_path / "palette.png")
    assert data.read_image(tmp_path / "palette.png")[0, 1].tolist() == [40, 50, 60]
    turned = Image.fromarray(rgba[..., :3])
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees"
    turned.save(tmp_path / "turned.png", exif=exif)
    assert data.read_image(tmp_path / "turned.png").shape == (6, 8, 3)
    rewrite(tmp_path / "deep.png", grey.astype(np.uint16) * 1000)
    with pytest.raises(InputError, match=r"deep\.png: mode I;16 where an 8-bit picture"):
        data.read_image(tmp_path / "deep.png")
    with pytest.raises(InputError, match=r"none\.png: no such file"):
        data.read_image(tmp_path / "none.png")
    with pytest.raises(InputError):
        data.read_image(tmp_path)
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"empty\.png: unreadable picture"):
        data.read_image(tmp_path / "empty.png")


def test_read_label_accepts_ids_in_grey_palette_and_deep_pictures(tmp_path: Path) -> None:
    ids = (np.arange(48, dtype=np.uint8) % 12).reshape(6, 8)
    rewrite(tmp_path / "grey.png", ids)
    rewrite(tmp_path / "deep.png", ids.astype(np.uint16))
    palette = Image.fromarray(ids).convert("P")
    palette.putpalette([200, 100, 50] * 12)
    palette.putdata(ids.flatten().tolist())
    palette.save(tmp_path / "palette.png")
    for name in ("grey", "deep", "palette"):
        label = data.read_label(tmp_path / f"{name}.png")
        assert label.dtype == np.uint8
        assert np.array_equal(label, ids)


def test_bombs_are_a_problem_not_a_crash(tiny_dataset: Path, monkeypatch) -> None:
    monkeypatch.setattr(pictures, "MAX_PIXELS", 1000)
    assert "too large" in problems_of(tiny_dataset)
    monkeypatch.undo()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(InputError, match="too large"):
        data.read_image(tiny_dataset / "train" / "train_000.png")


@given(damage=st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_files_raise_only_input_errors(damage, tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("damage") / "a.png"
    rewrite(path, np.arange(30 * 40, dtype=np.uint8).reshape(30, 40) % 12)
    whole = bytearray(path.read_bytes())
    for _ in range(damage.draw(st.integers(1, 4))):
        whole[damage.draw(st.integers(0, len(whole) - 1))] = damage.draw(st.integers(0, 255))
    path.write_bytes(whole[: damage.draw(st.integers(0, len(whole)))])
    for read in (data.read_image, data.read_label):
        told = ""
        try:
            assert read(path).dtype == np.uint8
        except InputError as error:
            told = str(error)
        assert not told or ("a.png" in told and "\n" not in told)


@given(
    high=st.integers(1, 12), wide=st.integers(1, 15), count=st.integers(1, 5), seed=st.integers(0)
)
@settings(max_examples=60, deadline=None)
def test_crops_keep_picture_and_label_together(high, wide, count, seed) -> None:
    rows, columns = torch.meshgrid(torch.arange(12), torch.arange(15), indexing="ij")
    frame = torch.arange(count)[:, None, None].expand(count, 12, 15)
    images = torch.stack(
        [frame, rows.expand_as(frame), columns.expand_as(frame)], dim=1
    )  # every pixel tells its own frame, row and column
    labels = frame * 1000 + rows * 20 + columns
    generator = torch.Generator().manual_seed(seed % 2**63)
    crops, ids = data.random_crops(images, labels, (high, wide), generator)
    assert crops.shape == (count, 3, high, wide)
    assert torch.equal(ids, crops[:, 0] * 1000 + crops[:, 1] * 20 + crops[:, 2])
    assert torch.equal(crops[:, 0], torch.arange(count)[:, None, None].expand_as(ids))
    assert bool((crops[:, 1].diff(dim=1) == 1).all())  # rows stay in order, without gaps
    steps = crops[:, 2].diff(dim=2)
    assert bool((steps == steps[:, :1, :1]).all()) if wide > 1 else True
    assert bool((steps.abs() == 1).all())  # columns run forth or, flipped, back


def test_crops_are_random_and_follow_the_seed() -> None:
    images = torch.arange(8 * 9).reshape(1, 1, 8, 9).expand(400, 3, 8, 9)
    labels = images[:, 0]

    def draw(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return data.random_crops(images, labels, 7, generator)[1]

    once = draw(3)
    assert torch.equal(once, draw(3))
    assert not torch.equal(once, draw(4))
    assert len({tuple(ids[0, :2].tolist()) for ids in once}) == 2 * 3 * 2  # all tops, lefts, flips
    flipped = (once[:, 0, 1] < once[:, 0, 0]).float().mean()
    assert 0.4 < flipped < 0.6


def test_a_crop_larger_than_the_frames_is_refused() -> None:
    images, labels = torch.zeros(2, 3, 20, 40), torch.zeros(2, 20, 40)
    with pytest.raises(InputError, match="crop 30x30 does not fit into frames of 20x40"):
        data.random_crops(images, labels, 30, torch.Generator())
    with pytest.raises(InputError, match="crop 0x5"):
        data.random_crops(images, labels, (0, 5), torch.Generator())


def numbered_frames(count: int) -> Frames:
    values = torch.arange(count, dtype=torch.uint8)
    images = values[:, None, None, None].expand(count, 3, 6, 6).contiguous()
    return Frames(images, images[:, 0].clone(), tuple(str(i) for i in range(count)))


@given(count=st.integers(1, 40), batch_size=st.integers(1, 12), seed=st.integers(0, 2**31))
@settings(max_examples=80, deadline=None)
def test_batches_cover_every_frame_once(count, batch_size, seed) -> None:
    frames, generator = numbered_frames(count), torch.Generator().manual_seed(seed)
    if count == 1 and batch_size > 1:
        with pytest.raises(InputError, match="two frames are needed"):
            next(data.batches(frames, batch_size, 4, generator))
        return
    passes = list(data.batches(frames, batch_size, 4, generator))
    assert len(passes) == data.number_of_batches(count, batch_size)
    seen = torch.cat([indices for _, _, indices in passes])
    left_out = 1 if batch_size > 1 and count % batch_size == 1 else 0
    assert len(seen) == len(set(seen.tolist())) == count - left_out
    assert all(len(indices) == batch_size for _, _, indices in passes[:-1])
    for images, labels, indices in passes:
        assert images.shape == (len(indices), 3, 4, 4)
        assert torch.equal(images[:, 0, 0, 0].long(), indices)
        assert torch.equal(labels[:, 0, 0].long(), indices)


def test_batches_differ_between_passes() -> None:
    frames, generator = numbered_frames(30), torch.Generator().manual_seed(1)
    first = torch.cat([i for _, _, i in data.batches(frames, 6, 4, generator)])
    second = torch.cat([i for _, _, i in data.batches(frames, 6, 4, generator)])
    assert not torch.equal(first, second)
    with pytest.raises(InputError, match="batch size 0"):
        data.number_of_batches(4, 0)


@given(st.lists(st.sampled_from(sorted(ORIGINAL_COLOURS)), min_size=1, max_size=40))
def test_original_colours_are_grouped(names: list[str]) -> None:
    rgb = np.array([[ORIGINAL_COLOURS[name] for name in names]], dtype=np.uint8)
    ids = data.group_labels(rgb)
    assert ids.shape == (1, len(names))
    assert ids.dtype == np.uint8
    for name, value in zip(names, ids[0], strict=True):
        groups = [CLASSES.index(group) for group, members in GROUPS.items() if name in members]
        assert [int(value)] == (groups or [VOID])


@pytest.mark.parametrize("colour", [(1, 2, 3), (255, 255, 255), (0, 0, 1)])
def test_an_unknown_colour_is_named(colour: tuple[int, int, int]) -> None:
    rgb = np.zeros((5, 7, 3), np.uint8)
    rgb[2, 4] = colour
    told = rf"\({colour[0]}, {colour[1]}, {colour[2]}\) at row 2, column 4"
    with pytest.raises(InputError, match=told):
        data.group_labels(rgb)
    with pytest.raises(InputError, match="is needed"):
        data.group_labels(rgb[..., 0])


def test_a_malformed_manifest_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "manifest"
    path.write_text("# made by hand\n" + "a" * 64 + "  train/x\nnonsense\n")
    with pytest.raises(InputError, match="line 3"):
        manifest.read_manifest(path)
    with pytest.raises(InputError, match="unreadable manifest"):
        manifest.read_manifest(tmp_path / "none")
    assert len(manifest.read_manifest()) == 1402


@pytest.mark.camvid
def test_the_real_camvid_is_whole_and_loads_quickly(camvid: Path) -> None:
    report = data.verify(camvid, decode=False)
    assert report.complete
    assert report.name == "CamVid"
    assert report.counts == {"train": 367, "val": 101, "test": 233}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        start = time.perf_counter()
        frames = data.load(camvid, "test", limit=24)
    assert time.perf_counter() - start < 20
    assert frames.images.shape == (24, 3, 360, 480)
    assert int(frames.labels.max()) <= VOID
    assert layout.survey(camvid).declared_size in (None, (360, 480))
