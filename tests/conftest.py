"""Fixtures shared by the tests: the real CamVid where it is at hand, and a tiny data set."""

import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"  # read by huggingface_hub when it is imported

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camvid_lang.data.camvid import pixels
from camvid_lang.data.download import unpack_scenes

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO / "scripts"))


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=20, help="how often training is killed")
    text = "let each n-th file operation of a run fail"
    parser.addoption("--faults", type=int, default=20, help=text)


def pytest_collection_modifyitems(items):
    """Fast tests first; then what is marked slow, by its seconds if given, the longest first."""
    items.sort(key=lambda item: [1 / sum(x.args, start=1) for x in item.iter_markers("slow")])


def _shared(name, variable, folder):
    """What the repository does not carry; the test is skipped where it is absent."""
    root = Path(os.environ.get(variable) or REPO.parent / "shared" / folder)
    if not (root / name).exists():
        pytest.skip(f"no {name} in {root} (set {variable})")
    return root / name


@pytest.fixture(scope="session")
def camvid():
    return _shared("train", "CAMVID_DIR", "camvid").parent


@pytest.fixture(scope="session")
def resnet18_weights():
    return _shared("resnet18_imagenet1k_v1.safetensors", "CAMVID_WEIGHTS_DIR", "weights")


@pytest.fixture(scope="session")
def clip_text_bank():
    return _shared("clip_vit_b16_text.npz", "CAMVID_WEIGHTS_DIR", "weights")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Nothing is read from, or left in, the user's caches; no hub is asked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hub")))
        yield


def write_dataset(root, train=6, test=3, size=(96, 128), suffix=".png", seed=0):
    """A small valid data set of random images; every label holds all ids 0..11."""
    random, shape = np.random.default_rng(seed), (size[0] // 8, size[1] // 8)
    for split, count in (("train", train), ("val", 2), ("test", test)):
        for folder in (split, f"{split}annot"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            # Blocks of 8x8 compress; white noise would not.
            image = random.integers(0, 256, (*shape, 3), dtype=np.uint8)
            label = random.integers(0, 12, shape, dtype=np.uint8)
            image, label = (x.repeat(8, axis=0).repeat(8, axis=1) for x in (image, label))
            label[0, :12] = range(12)
            name = f"{split}_{number:03d}"
            Image.fromarray(image).save(root / split / f"{name}{suffix}")
            Image.fromarray(label).save(root / f"{split}annot" / f"{name}.png")
    return root


def write_manifest(root, path):
    """A manifest of the pixels of a data set, as the package has of CamVid."""
    keys = {f"{file.parent.name}/{file.stem}": pixels(file).digest for file in root.glob("*/*.*")}
    path.write_text("".join(f"{digest}  {key}\n" for key, digest in sorted(keys.items())))


@pytest.fixture
def make_dataset(tmp_path):
    """`make_dataset(name="data", **options)`: a new small data set, options as above."""
    return lambda name="data", **options: write_dataset(tmp_path / name, **options)


@pytest.fixture
def release(make_dataset, tmp_path, monkeypatch):
    """A small data set, which the manifest says is the release of CamVid."""
    root = make_dataset("release")
    write_manifest(root, tmp_path / "manifest")
    monkeypatch.setattr("camvid_lang.data.camvid.MANIFEST", tmp_path / "manifest")
    return root


@pytest.fixture
def tiny_dataset(make_dataset):
    """A new data set of 6 train, 2 val and 3 test frames of 96x128."""
    return make_dataset()


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """The first six drawn scenes of each split, 256x192."""
    return unpack_scenes(tmp_path_factory.mktemp("scenes"), limit=6)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A folder of a data set `data` and finished smoke runs `frozen-names` and `swiftnet`."""
    from camvid_lang.experiments import configure
    from camvid_lang.runs import run

    root = tmp_path_factory.mktemp("finished")
    data = write_dataset(root / "data")
    for name in ("frozen-names", "swiftnet"):
        run(configure(name, "smoke"), data, root / name, device="cpu")
    return root
