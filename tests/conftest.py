"""Fixtures shared by the tests: the real CamVid where it is at hand, and a tiny data set."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read by huggingface_hub when it is imported

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camvid_lang.data.camvid import pixels

REPO = Path(__file__).resolve().parent.parent


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=20, help="how often training is killed")


def pytest_collection_modifyitems(items):
    """Fast tests first; then what is marked slow, by its seconds if given, the longest first."""

    def seconds(item):
        marker = item.get_closest_marker("slow")
        return 0 if marker is None else 1 / sum(marker.args, start=1)

    items.sort(key=seconds)


@pytest.fixture(scope="session")
def camvid():
    """The real CamVid; the test is skipped where it is absent."""
    given = os.environ.get("CAMVID_DIR")
    root = Path(given) if given else REPO.parent / "shared" / "camvid"
    if not (root / "train").is_dir():
        pytest.skip(f"no CamVid in {root} (set CAMVID_DIR)")
    return root


def _weights(name):
    """A file of third-party weights, which the repository does not carry."""
    given = os.environ.get("CAMVID_WEIGHTS_DIR")
    path = (Path(given) if given else REPO.parent / "shared" / "weights") / name
    if not path.is_file():
        pytest.skip(f"no {name} in {path.parent} (set CAMVID_WEIGHTS_DIR)")
    return path


@pytest.fixture(scope="session")
def resnet18_weights():
    """ImageNet weights of ResNet-18; the test is skipped where they are absent."""
    return _weights("resnet18_imagenet1k_v1.safetensors")


@pytest.fixture(scope="session")
def clip_text_bank():
    """Phrases embedded by the real CLIP ViT-B/16; the test is skipped where they are absent."""
    return _weights("clip_vit_b16_text.npz")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Nothing is read from, or left in, the user's caches; no hub is asked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hub")))
        yield


def write_dataset(root, train=6, val=2, test=3, size=(96, 128), suffix=".png", seed=0):
    """A small valid data set of random images; every label holds all ids 0..11."""
    random = np.random.default_rng(seed)
    height, width = size
    for split, count in (("train", train), ("val", val), ("test", test)):
        for folder in (split, f"{split}annot"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            name = f"{split}_{number:03d}"
            # Blocks of 8x8 compress; white noise would not.
            image = random.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
            label = random.integers(0, 12, (height // 8, width // 8), dtype=np.uint8)
            image = image.repeat(8, axis=0).repeat(8, axis=1)
            label = label.repeat(8, axis=0).repeat(8, axis=1)
            label[0, :12] = range(12)
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

    def make(name="data", **options):
        return write_dataset(tmp_path / name, **options)

    return make


@pytest.fixture
def tiny_dataset(make_dataset):
    """A new data set of 6 train, 2 val and 3 test frames of 96x128."""
    return make_dataset()


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A folder of a data set `data` and finished smoke runs `frozen-names` and `swiftnet`."""
    from camvid_lang.experiments import configure
    from camvid_lang.run import run

    root = tmp_path_factory.mktemp("finished")
    data = write_dataset(root / "data")
    for name in ("frozen-names", "swiftnet"):
        run(configure(name, "smoke"), data, root / name, device="cpu")
    return root
