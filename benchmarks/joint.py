"""Training on two data sets with different classes, against training on either alone.

    python benchmarks/joint.py OUT.json [FRAMES [EPOCHS]]

Two sets of FRAMES (default 280) other drawn scenes each: `fine` has the 11 classes, `coarse` has
seven, some of which are several of the 11 taken together, in other words. The same model, the tiny
CLIP trained whole with the classes' names, is trained on both for EPOCHS (default 14), and on each
alone for the same number of steps (twice the epochs), and tested on both, in each set's own words.
About a quarter of an hour on a core.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import camvid_lang as cl
from camvid_lang.data.camvid import Frames
from camvid_lang.data.classes import CLASSES, VOID
from camvid_lang.evaluation import confusion_matrix, scores
from camvid_lang.experiments import Experiment
from camvid_lang.models.segmentation import SegmentationModel
from camvid_lang.models.text import class_prompts, embed_classes
from camvid_lang.results import versions
from camvid_lang.run import build_model
from camvid_lang.scenes.dataset import write_scenes
from camvid_lang.training.checkpoint import Checkpoints
from camvid_lang.training.loop import train

SETTINGS = {"crop": 128, "batch_size": 8, "lr": 2e-3, "encoder_lr": 2e-3}
COARSE = {"sky": ["sky"], "facade | barrier": ["building", "fence"], "column": ["pole", "sign"]}
COARSE |= {"street": ["road", "pavement"], "vegetation": ["tree"], "vehicle": ["car"]}
COARSE |= {"human": ["pedestrian", "bicyclist"]}


def draw(folder: Path, frames: int) -> tuple[Path, Path]:
    """The two sets; no scene is in both."""
    fine, coarse = folder / "fine", folder / "coarse"
    for seed, path in enumerate((fine, coarse)):
        write_scenes(path, counts={"train": frames, "val": 2, "test": 60}, seed=seed)
    ids = np.full(VOID + 1, len(COARSE), np.uint8)
    for new, names in enumerate(COARSE.values()):
        ids[[CLASSES.index(name) for name in names]] = new
    for path in coarse.glob("*annot/*.png"):
        Image.fromarray(ids[np.array(Image.open(path))]).save(path)
    card = {"name": "coarse", "classes": [*COARSE]}
    (coarse / "dataset.json").write_text(json.dumps(card))
    return fine, coarse


def asked_for_coarse(segmenter: cl.Segmenter, test) -> dict[str, float]:
    """mIoU in the coarse words of a model that was trained on the fine ones, in percent."""
    images = [image.permute(1, 2, 0).numpy() for image in test.images]
    found = {}
    for way in ("cosine", "anchored"):
        ids = [segmenter.segment(image, [*COARSE], compare=way).ids for image in images]
        pairs = zip(map(torch.from_numpy, ids), test.labels, strict=True)
        found[way] = scores(confusion_matrix(pairs, len(COARSE)), [*COARSE])["miou"]
    return found


def coarse_alone(experiment: Experiment, coarse: Path) -> SegmentationModel:
    """The model, trained on the coarse set only."""
    model, text_encoder = build_model(experiment)
    frames = cl.load_camvid(coarse, "trainval", any_classes=True)
    text = embed_classes(class_prompts([*COARSE]), text_encoder)
    none = Frames(frames.images[:0], frames.labels[:0], ())
    with tempfile.TemporaryDirectory() as kept:
        cpu = torch.device("cpu")
        train(model, none, experiment, Checkpoints(kept), cpu, others=[(frames, text)])
    return model.eval()


def main(out: str, frames: str = "280", epochs: str = "14") -> None:
    settings = {**SETTINGS, "epochs": int(epochs)}
    twice = {"epochs": 2 * int(epochs)}  # of half the frames
    found = {"settings": settings, "frames": int(frames), "versions": versions()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fine, coarse = draw(folder, int(frames))
        test = cl.load_camvid(coarse, "test", any_classes=True)
        found["digests"] = [cl.load_camvid(fine, "test").digest, test.digest]
        longer = cl.experiment("full-names", "cpu", **{**settings, **twice})
        results = cl.run(longer, fine, folder / "fine-alone")
        segmenter = cl.load(folder / "fine-alone", device="cpu")
        found["fine"] = {"fine": results["miou"], "coarse": asked_for_coarse(segmenter, test)}
        alone = coarse_alone(longer, coarse)
        words = torch.from_numpy(segmenter.embed([*COARSE]))
        found["coarse"] = {
            "fine": cl.evaluate(alone, cl.load_camvid(fine, "test"))["miou"],
            "coarse": cl.evaluate(alone, test, text=words)["miou"],
        }
        joint = cl.experiment("full-names", "cpu", **settings, also=str(coarse))
        results = cl.run(joint, fine, folder / "joint")
        found["joint"] = {"fine": results["miou"], "coarse": results["also"]["coarse"]["miou"]}
    Path(out).write_text(json.dumps(found, indent=1) + "\n")
    print({key: found[key] for key in ("fine", "coarse", "joint")})


if __name__ == "__main__":
    main(*sys.argv[1:])
