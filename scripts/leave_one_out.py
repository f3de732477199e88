"""Classes held out of training and asked for by name, next to the untrained model.

    python scripts/leave_one_out.py DATA OUT.json [CLASS ...] [--experiment frozen-names]
                                    [--profile cpu] [--set KEY=VALUE ...]

For each CLASS, or several with commas ("tree,sign,car,bicyclist"; default: each class in turn), the
experiment is trained with a vocabulary of the other classes, where the labels of those held out are
void. Then it is asked for all 11 classes in each of the ways of `Match.scores`. OUT.json gets mean
IoU over trained and over held-out classes, and their harmonic mean; what it has already is kept.
benchmarks/README.md has results on drawn scenes, two minutes of a core for each CLASS, with
    --set crop=128 batch_size=8 lr=2e-3 encoder_lr=1e-3 epochs=9
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, harmonic_mean

import torch

from camvid_lang.data.camvid import Frames
from camvid_lang.data.classes import CLASSES, NUM_CLASSES, VOID
from camvid_lang.device import pick_device, to_device
from camvid_lang.errors import InputError
from camvid_lang.evaluation import confusion_matrix, scores
from camvid_lang.experiments import EXPERIMENTS, PROFILES, Experiment, configure
from camvid_lang.models import RESNET18
from camvid_lang.models.segmentation import COMPARE
from camvid_lang.results import versions, write_json
from camvid_lang.runs import build_model, load_dataset, trained_prompts
from camvid_lang.segmenter import Segmenter
from camvid_lang.training.checkpoint import Checkpoints
from camvid_lang.training.loop import train

TRAINED = [name for name, e in EXPERIMENTS.items() if e.model in ("adapter", "clip-upsampler")]
SHARED = ("encoder", "weights", "text_bank", "text_set")  # with the untrained model


def parse_held_out(text: str) -> list[str]:
    """The classes in "tree,sign", in the order of their ids."""
    names = {name.strip() for name in text.split(",")}
    if not names < {*CLASSES} or len(names) > NUM_CLASSES - 2:
        raise InputError(f"{text!r}: choose at most {NUM_CLASSES - 2} of {', '.join(CLASSES)}")
    return [name for name in CLASSES if name in names]


def hold_out(frames: Frames, held_out: Sequence[str]) -> Frames:
    """The frames with labels that index the other classes; those held out are void."""
    trained = [name for name in CLASSES if name not in held_out]
    ids = [trained.index(name) if name in trained else VOID for name in CLASSES]
    return replace(frames, labels=torch.tensor([*ids, VOID]).to(torch.uint8)[frames.labels.long()])


def build_segmenter(experiment: Experiment, prompts: Mapping | None = None) -> Segmenter:
    """The experiment's model as `build_model` makes it, untrained."""
    model, text_encoder = build_model(experiment, prompts)
    return Segmenter(to_device(model, pick_device()).eval(), experiment, lambda: text_encoder)


def train_without(held_out: Sequence[str], frames: Frames, experiment: Experiment) -> Segmenter:
    """A segmenter of the other classes, trained on the frames; nothing is kept on disk."""
    prompts = {k: v for k, v in trained_prompts(experiment).items() if k not in held_out}
    segmenter = build_segmenter(experiment, prompts)
    with tempfile.TemporaryDirectory() as folder:
        train(segmenter.model, hold_out(frames, held_out), experiment, Checkpoints(folder))
    segmenter.model.eval()
    return segmenter


def ask(segmenter: Segmenter, frames: Frames) -> dict[str, dict]:
    """{way of comparison: IoU of each of the 11 classes}."""
    prompts, found = trained_prompts(segmenter.experiment), {}
    images = frames.images.permute(0, 2, 3, 1).numpy()
    for way in COMPARE if segmenter.model.has_clip_map else COMPARE[:2]:
        ids = (torch.from_numpy(segmenter.segment(x, prompts, compare=way).ids) for x in images)
        found[way] = scores(confusion_matrix(zip(ids, frames.labels, strict=True)))["iou"]
    return found


def means(iou: Mapping[str, float | None], held_out: Sequence[str]) -> dict[str, float]:
    """Means in percent over trained and held-out classes, and their harmonic mean.

    Classes without IoU are left out. As in the literature on generalised zero-shot segmentation
    (Bucher et al., 2019), where all classes are asked for at once.
    """
    groups = {"trained": [x for x in CLASSES if x not in held_out], "held_out": held_out}
    values = {key: [iou[x] for x in names if iou[x] is not None] for key, names in groups.items()}
    found = {key: fmean(group or [0.0]) for key, group in values.items()}
    return {**found, "harmonic": harmonic_mean(found.values())}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Hold classes out of training, and ask for them.")
    parser.add_argument("data", help="a data set in CamVid's layout")
    parser.add_argument("out", type=Path, metavar="OUT.json", help="results are added to it")
    parser.add_argument("classes", nargs="*", metavar="CLASS", help="one, or several with commas")
    parser.add_argument("--experiment", choices=TRAINED, default="frozen-names")
    parser.add_argument("--profile", choices=PROFILES, default="cpu")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE")
    options = parser.parse_args(arguments)
    chosen = [parse_held_out(text) for text in options.classes or CLASSES]
    settings = dict(pair.partition("=")[::2] for pair in options.set)
    experiment = configure(options.experiment, options.profile, **settings)
    dataset, untrained = load_dataset(options.data, experiment), {}
    made_with = {"settings": experiment.settings(), "data": dataset.description}
    found = {"versions": versions(), **made_with, "held_out": {}}
    if options.out.exists():
        found = json.loads(options.out.read_text(encoding="utf-8"))
        if {key: found.get(key) for key in made_with} != made_with:
            raise InputError(f"{options.out} is of other settings or data: choose another file")
    if experiment.encoder != RESNET18:  # which is not part of a CLIP
        same = configure("bilinear-names", **{key: getattr(experiment, key) for key in SHARED})
        untrained["untrained"] = ask(build_segmenter(same), dataset.test)["cosine"]
    for held_out in chosen:
        if (key := ",".join(held_out)) not in found["held_out"]:
            segmenter = train_without(held_out, dataset.train, experiment)
            rows = {**ask(segmenter, dataset.test), **untrained}
            found["held_out"][key] = {name: means(iou, held_out) for name, iou in rows.items()}
            write_json(options.out, found)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
