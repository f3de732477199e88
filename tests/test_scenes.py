"""Scenes: the same seed gives the same bytes, labels are exact, a dataset is drawn only once."""

import json

import numpy as np
import pytest
from PIL import Image

from camvid_lang.data.classes import NUM_CLASSES, VOID
from camvid_lang.errors import InputError
from camvid_lang.scenes import dataset as scenes
from camvid_lang.scenes import road_users, scenery
from camvid_lang.scenes.canvas import CLASS_ID, SceneCanvas


@pytest.fixture(scope="module")
def forty():
    return [scenes.draw_scene(scenes.scene_seed(0, "val", index)) for index in range(40)]


def test_same_seed_same_bytes(forty):
    image, label = scenes.draw_scene(scenes.scene_seed(0, "val", 7))
    assert image.tobytes() == forty[7][0].tobytes()
    assert label.tobytes() == forty[7][1].tobytes()
    assert image.tobytes() != forty[8][0].tobytes()


def test_shapes_types_and_ids(forty):
    for image, label in forty:
        assert image.shape == (192, 256, 3)
        assert image.dtype == np.uint8
        assert label.shape == (192, 256)
        assert label.dtype == np.uint8
        assert label.max() <= VOID
    image, label = scenes.draw_scene(3, size=(90, 122))
    assert image.shape == (90, 122, 3)
    assert label.shape == (90, 122)


def test_every_class_is_frequent_enough(forty):
    frames = np.zeros(NUM_CLASSES + 1)
    share = np.zeros(NUM_CLASSES + 1)
    for _, label in forty:
        count = np.bincount(label.ravel(), minlength=NUM_CLASSES + 1)
        frames += count > 0
        share += count / label.size / len(forty)
    assert (frames >= 10).all()
    assert (share[:NUM_CLASSES] > 0.004).all()
    assert 0 < share[VOID] < 0.05
    small = [CLASS_ID[name] for name in ("pole", "sign", "pedestrian", "bicyclist")]
    assert share[small].max() < 0.05


@pytest.mark.parametrize(
    ("draw", "names"),
    [
        (lambda c: scenery.building(c, 4, 8, 16), {"building", "sign"}),
        (lambda c: scenery.tree(c, 0, 8), {"tree"}),
        (lambda c: scenery.sign(c, 0, 8), {"sign", "pole"}),
        (lambda c: scenery.pole(c, 1, 8), {"pole"}),
        (lambda c: road_users.pedestrian(c, 0, 8), {"pedestrian"}),
        (lambda c: road_users.bicyclist(c, 0, 8), {"bicyclist"}),
    ],
)
@pytest.mark.parametrize("seed", range(5))
def test_label_covers_exactly_what_is_drawn(draw, names, seed):
    """On a canvas of a colour no material has, a pixel is painted where, and only where, the label
    says so."""
    rng = np.random.default_rng(seed)
    canvas = SceneCanvas(rng, (96, 128), (1, 1, 1), (0, 0, 0), sight=1e9, sun=1)
    empty = (255, 0, 255)
    canvas.picture.paste(empty, (0, 0, 128, 96))
    draw(canvas)
    painted = (np.asarray(canvas.picture) != empty).any(axis=2)
    label = np.asarray(canvas.label)
    assert painted.any()
    assert np.array_equal(painted, label != VOID)
    assert set(np.unique(label[painted])) <= {CLASS_ID[name] for name in names}


def test_nearer_things_cover_farther_ones():
    canvas = SceneCanvas(np.random.default_rng(0), (96, 128), (1, 1, 1), (0, 0, 0), 1e9, sun=1)
    scenery.tree(canvas, 0, 20)
    road_users.car(canvas, 0.1, 6)
    column, row = canvas.project(0.1, 0.6, 6)
    assert canvas.label.getpixel((int(column), int(row))) == CLASS_ID["car"]


def test_colour_alone_tells_no_class(forty):
    """The best class for each of 512 colour cells, chosen on these very pixels, stays poor."""
    cells, labels = [], []
    for image, label in forty:
        known = label != VOID
        cells.append((image[known] >> 5).astype(int) @ [64, 8, 1])
        labels.append(label[known])
    table = np.zeros((512, NUM_CLASSES))
    np.add.at(table, (np.concatenate(cells), np.concatenate(labels)), 1)
    best = np.eye(NUM_CLASSES, dtype=bool)[table.argmax(1)]
    hits = (table * best).sum(0)
    union = table.sum(0) + (table.sum(1, keepdims=True) * best).sum(0) - hits
    assert (hits / union).mean() < 0.25


def test_write_scenes_once(tmp_path, monkeypatch):
    counts = {"train": 3, "val": 2, "test": 2}
    root = scenes.write_scenes(tmp_path / "set", counts, size=(48, 64), seed=5)
    told = json.loads((root / "dataset.json").read_text())
    assert told["counts"] == counts
    assert told["size"] == [48, 64]
    assert told["name"] == "scenes"
    for split, count in counts.items():
        names = sorted(path.name for path in (root / split).iterdir())
        assert len(names) == count
        assert names == sorted(path.name for path in (root / f"{split}annot").iterdir())
    image, label = scenes.draw_scene(scenes.scene_seed(5, "val", 1), (48, 64))
    assert np.array_equal(np.asarray(Image.open(root / "val/scene_00001.png")), image)
    assert np.array_equal(np.asarray(Image.open(root / "valannot/scene_00001.png")), label)

    def refuse(*_):
        raise AssertionError("drawn again")

    monkeypatch.setattr(scenes, "draw_scene", refuse)
    assert scenes.write_scenes(root, counts, size=(48, 64), seed=5) == root
    with pytest.raises(AssertionError, match="drawn again"):
        scenes.write_scenes(root, counts, size=(48, 64), seed=6)
    assert not (root / "dataset.json").exists()


def test_other_counts_leave_nothing_over(tmp_path):
    scenes.write_scenes(tmp_path, {"train": 4, "test": 2}, size=(32, 48))
    scenes.write_scenes(tmp_path, {"train": 2, "test": 2}, size=(32, 48))
    assert len(list((tmp_path / "train").iterdir())) == 2
    assert len(list((tmp_path / "trainannot").iterdir())) == 2


def test_splits_share_no_seed():
    seeds = {
        scenes.scene_seed(seed, split, index)
        for seed in (0, 1)
        for split in ("train", "val", "test")
        for index in (0, 1, 99_998)
    }
    assert len(seeds) == 18


@pytest.mark.parametrize("counts", [{"tarin": 3}, {"train": 0}, {"train": 100_000}])
def test_bad_counts_are_one_line(tmp_path, counts):
    with pytest.raises(InputError) as caught:
        scenes.write_scenes(tmp_path, counts)
    assert "\n" not in str(caught.value)
