"""Scenes: the same seed gives the same bytes, labels are exact, a data set is drawn only once."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from camvid_lang.data.classes import NUM_CLASSES, VOID
from camvid_lang.scenes import dataset, objects
from camvid_lang.scenes.canvas import CLASS_ID, SceneCanvas
from camvid_lang.scenes.dataset import draw_scene, scene_seed, write_scenes


@pytest.fixture(scope="module")
def forty():
    return [draw_scene(scene_seed(0, "val", index)) for index in range(40)]


def test_a_seed_gives_the_bytes_it_always_gave(forty):
    """The shipped tiny CLIP and all demo results depend on them: else raise `dataset.VERSION`."""
    assert dataset.VERSION == 1
    labels = hashlib.sha256(b"".join(label.tobytes() for _, label in forty))
    assert labels.hexdigest()[:16] == "cc3c2d52b2624433"
    image, label = draw_scene(scene_seed(0, "val", 7))
    assert np.array_equal(image, forty[7][0])
    assert np.array_equal(label, forty[7][1])


def test_shapes_types_and_ids(forty):
    for image, label in [*forty, draw_scene(3, size=(90, 122))]:
        assert image.dtype == label.dtype == np.uint8
        assert image.shape == (*label.shape, 3)
        assert label.max() <= VOID
    assert label.shape == (90, 122)
    assert forty[0][1].shape == (192, 256)


@pytest.mark.parametrize(
    ("draw", "names"),
    [
        (lambda c: objects.building(c, 4, 8, 16), {"building", "sign"}),
        (lambda c: objects.tree(c, 0, 8), {"tree"}),
        (lambda c: objects.hedge(c, 2, 6, 8), {"tree"}),
        (lambda c: objects.fence(c, 2, 6, 8, objects.fence_style(c)), {"fence"}),
        (lambda c: objects.sign(c, 0, 8), {"sign", "pole"}),
        (lambda c: objects.pole(c, 1, 8), {"pole"}),
        (lambda c: objects.pedestrian(c, 0, 8), {"pedestrian"}),
        (lambda c: objects.bicyclist(c, 0, 8), {"bicyclist"}),
    ],
)
@pytest.mark.parametrize("seed", range(5))
def test_label_covers_exactly_what_is_drawn(draw, names, seed):
    """On a canvas of a colour no object has, exactly the labelled pixels are painted."""
    rng = np.random.default_rng(seed)
    canvas = SceneCanvas(rng, (96, 128), (1, 1, 1), (0, 0, 0), sight=1e9, sun=1)
    empty = (255, 0, 255)
    canvas.image.paste(empty, (0, 0, 128, 96))
    draw(canvas)
    painted = (np.asarray(canvas.image) != empty).any(axis=2)
    label = np.asarray(canvas.label)
    assert painted.any()
    assert np.array_equal(painted, label != VOID)
    assert set(np.unique(label[painted])) <= {CLASS_ID[name] for name in names}


def test_nearer_objects_cover_farther_ones():
    canvas = SceneCanvas(np.random.default_rng(0), (96, 128), (1, 1, 1), (0, 0, 0), 1e9, sun=1)
    objects.tree(canvas, 0, 20)
    objects.car(canvas, 0.1, 6)
    column, row = canvas.project(0.1, 0.6, 6)
    assert canvas.label.getpixel((int(column), int(row))) == CLASS_ID["car"]


def test_colour_alone_does_not_give_away_the_class(forty):
    """The best class for each of 512 colour cells, chosen on these very pixels, has a low mIoU."""
    image, label = (np.stack(arrays) for arrays in zip(*forty, strict=True))
    cells = (image[label != VOID] >> 5).astype(int) @ [64, 8, 1]
    table = np.zeros((512, NUM_CLASSES))
    np.add.at(table, (cells, label[label != VOID]), 1)
    best = np.eye(NUM_CLASSES, dtype=bool)[table.argmax(1)]
    hits = (table * best).sum(0)
    union = table.sum(0) + (table.sum(1, keepdims=True) * best).sum(0) - hits
    assert (hits / union).mean() < 0.25


def test_a_data_set_is_written_once(tmp_path, monkeypatch):
    counts = {"train": 3, "val": 2, "test": 2}
    root = write_scenes(tmp_path / "set", counts, size=(48, 64), seed=5)
    described = json.loads((root / "dataset.json").read_text())
    assert (described["name"], described["counts"]) == ("scenes", counts)
    for split, count in counts.items():
        names = sorted(path.name for path in (root / split).iterdir())
        assert len(names) == count
        assert names == sorted(path.name for path in (root / f"{split}annot").iterdir())
    image, label = draw_scene(scene_seed(5, "val", 1), (48, 64))
    assert np.array_equal(np.asarray(Image.open(root / "val/scene_00001.png")), image)
    assert np.array_equal(np.asarray(Image.open(root / "valannot/scene_00001.png")), label)

    def refuse(*_):
        raise AssertionError("drawn again")

    monkeypatch.setattr(dataset, "draw_scene", refuse)
    assert write_scenes(root, counts, size=(48, 64), seed=5) == root
    whole = (root / "testannot/scene_00001.png").read_bytes()
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(root / "testannot/scene_00001.png")
    with pytest.raises(AssertionError, match="drawn again"):
        write_scenes(root, counts, size=(48, 64), seed=5)
    monkeypatch.undo()
    write_scenes(root, counts, size=(48, 64), seed=5)
    assert (root / "testannot/scene_00001.png").read_bytes() == whole
    monkeypatch.setattr(dataset, "draw_scene", refuse)
    with pytest.raises(AssertionError, match="drawn again"):
        write_scenes(root, counts, size=(48, 64), seed=6)
    assert not (root / "dataset.json").exists()  # a data set cut short is not taken for complete


def test_other_counts_leave_no_old_images(tmp_path):
    write_scenes(tmp_path, {"train": 4, "test": 2}, size=(32, 48))
    write_scenes(tmp_path, {"train": 2, "test": 2}, size=(32, 48))
    assert len(list((tmp_path / "train").iterdir())) == 2
    assert len(list((tmp_path / "trainannot").iterdir())) == 2


def test_splits_share_no_seed():
    splits, indices = ("train", "val", "test"), (0, 1, 99_998)
    seeds = {scene_seed(seed, split, i) for seed in (0, 1) for split in splits for i in indices}
    assert len(seeds) == 18
