"""Scenes: the same seed gives the same bytes, labels are exact, the script packs them."""

import hashlib
import io
import itertools
import json
import subprocess
import sys
import zipfile

import draw_scenes
import numpy as np
import pytest
from conftest import REPO
from draw_scenes import CLASS_ID, SceneCanvas, draw_scene, scene_seed
from PIL import Image

from camvid_lang.data.classes import NUM_CLASSES, VOID

PLACES = {"building": (4, 8, 16), "tree": (0, 8), "hedge": (2, 6, 8), "fence": (2, 6, 8),
          "sign": (0, 8), "pole": (1, 8), "pedestrian": (0, 8), "bicyclist": (0, 8)}  # fmt: skip
CLASSES_OF = {"building": {"building", "sign"}, "hedge": {"tree"}, "sign": {"sign", "pole"}}


@pytest.fixture(scope="module")
def forty():
    return [draw_scene(scene_seed(0, "val", index)) for index in range(40)]


def test_a_seed_gives_the_bytes_it_always_gave(forty):
    """The archive and the tiny CLIP that the package carries were made from them."""
    labels = hashlib.sha256(b"".join(label.tobytes() for _, label in forty))
    assert labels.hexdigest()[:16] == "cc3c2d52b2624433"
    assert all(map(np.array_equal, draw_scene(scene_seed(0, "val", 7)), forty[7]))
    assert [array.shape for array in draw_scene(3, (90, 122))] == [(90, 122, 3), (90, 122)]


def _canvas(seed):
    return SceneCanvas(np.random.default_rng(seed), (96, 128), (1, 1, 1), (0, 0, 0), 1e9, sun=1)


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("seed", range(5))
def test_label_covers_exactly_what_is_drawn(kind, seed):
    canvas, empty = _canvas(seed), (255, 0, 255)  # a colour that no object has
    canvas.image.paste(empty, (0, 0, *canvas.image.size))
    style = (draw_scenes.fence_style(canvas),) if kind == "fence" else ()
    getattr(draw_scenes, kind)(canvas, *PLACES[kind], *style)
    painted = (np.asarray(canvas.image) != empty).any(axis=2)
    label, names = np.asarray(canvas.label), CLASSES_OF.get(kind, {kind})
    assert painted.any()
    assert np.array_equal(painted, label != VOID)
    assert set(np.unique(label[painted])) <= {CLASS_ID[name] for name in names}


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


def _check(path, seed, counts):
    """Scenes of an archive: labels are `draw_scene`'s, images close to its."""
    with zipfile.ZipFile(path) as archive:
        assert json.loads(archive.read("dataset.json")) == {"name": "scenes"}
        assert len(archive.namelist()) == 1 + 2 * sum(counts.values())
        for split, index in [(s, i) for s in counts for i in {0, counts[s] // 2, counts[s] - 1}]:
            image, label = draw_scene(scene_seed(seed, split, index))
            names = [f"{split}/scene_{index:05d}.webp", f"{split}annot/scene_{index:05d}.png"]
            lossy, exact = (np.asarray(Image.open(io.BytesIO(archive.read(n)))) for n in names)
            assert np.array_equal(exact, label)
            assert np.abs(lossy.astype(int) - image).mean() < 8
        assert {entry.date_time for entry in archive.infolist()} == {draw_scenes.TIMESTAMP}


def test_the_script_and_the_package_hold_the_scenes_drawn(tmp_path):
    counts, out = {"train": 2, "val": 1, "test": 1}, tmp_path / "scenes.zip"
    options = ["--seed=5", *(f"--{split}={count}" for split, count in counts.items())]
    command = [sys.executable, REPO / "scripts/draw_scenes.py", out, *options]
    subprocess.run(command, check=True, capture_output=True)
    _check(out, 5, counts)
    _check(REPO / "camvid_lang/assets/scenes.zip", 0, draw_scenes.COUNTS)


def test_splits_share_no_seed():
    triples = itertools.product((0, 1), ("train", "val", "test"), (0, 1, 99_998))
    assert len({scene_seed(*triple) for triple in triples}) == 18
