"""The scripts that carry runs into the package, and that hold classes out of training."""

import json
from dataclasses import replace

import carry
import leave_one_out
import pytest
import street_model
import torch

from camvid_lang.data.camvid import load_camvid
from camvid_lang.data.classes import CLASSES, VOID
from camvid_lang.demo import CARRIED
from camvid_lang.errors import InputError
from camvid_lang.evaluation import predict
from camvid_lang.experiments import configure
from camvid_lang.results import RunFolder, read_figures, read_results
from camvid_lang.runs import load_run, run

NAME = "full-narrow-descriptions"


def test_a_carried_run_is_small_and_segments_as_before(tiny_dataset, tmp_path):
    first, to = tmp_path / "run", tmp_path / "carried"
    run(configure(NAME, "smoke", ema=0.9), tiny_dataset, first, device="cpu")
    for _ in range(2):  # what is there is replaced
        carry.main([str(first), "--to", str(to)])
    carried = RunFolder(to / NAME)
    assert read_results(carried.results) == read_results(first / "results.json")
    [file], [whole] = (list(x.glob("*.pt")) for x in (carried.checkpoints, first / "checkpoints"))
    assert file.stat().st_size < whole.stat().st_size / 4
    images = load_camvid(tiny_dataset, "test").images
    before, after = (predict(load_run(folder)[0], images) for folder in (first, carried.path))
    assert len(before.unique()) > 1
    assert (before == after).float().mean() > 0.99  # weights in float16
    carried.figures.write_bytes(b"damaged")
    with pytest.raises(InputError, match="run the experiment again"):
        carry.main([str(carried.path), "--to", str(tmp_path / "again")])


def test_the_street_model_starts_from_drawn_scenes_and_is_carried_without_frames(
    tiny_dataset, tmp_path, monkeypatch
):
    smoke = {"epochs": 0, "crop": 64, "batch_size": 4, "limit": 4}
    few = {split: (4, first) for split, (_, first) in street_model.SCENES.items()}
    for name, value in {
        "ASSETS": tmp_path / "assets",
        "SCENES": few,
        "ON_SCENES": {**street_model.ON_SCENES, **smoke, "epochs": 1},
    }.items():
        monkeypatch.setattr(street_model, name, value)
    call = ["--data", str(tiny_dataset), "--out", str(tmp_path / "run"), "--carry"]
    call += [part for key, value in smoke.items() for part in ("--set", f"{key}={value}")]
    street_model.main(call)
    folder = RunFolder(tmp_path / "assets" / "camvid")
    model, experiment, text_encoder = load_run(folder.path)
    encoders = load_run(tmp_path / "street-start" / "run")[0], load_run(CARRIED / NAME)[0], model
    start, demo, found = (x.encoder.state_dict() for x in encoders)
    assert all((found[key] - start[key]).abs().max() < 1e-2 for key in start)  # in float16
    assert any((start[key] - demo[key]).abs().max() > 1e-6 for key in start)
    drawn = load_camvid(tmp_path / "street-start" / "scenes", "trainval")
    assert (len(drawn), drawn.images.shape[2:]) == (8, (360, 480))
    assert (experiment.weights, read_figures(folder.figures).images.shape[0]) == ("", 0)
    assert read_results(folder.results)["encoder"]["weights"] == "pretrained.safetensors"
    assert text_encoder().encode(["car"]).shape == (1, 64)
    call[-8:] = ["--set", "epochs=1", "--set", "epoch=1"]
    with pytest.raises(InputError, match="did you mean 'epochs'"):
        street_model.main(call)
    for key in ("encoder", "weights"):
        with pytest.raises(InputError, match=f"--set {key}: .* leave it out"):
            street_model.main([*call[:5], "--set", f"{key}=resnet18"])


def test_held_out_classes_are_not_trained_on(tiny_dataset):
    experiment, frames = configure("frozen-names", "smoke"), load_camvid(tiny_dataset, "trainval")

    def weights(held_out, labels):
        changed = replace(frames, labels=labels)
        segmenter = leave_one_out.train_without(held_out, changed, experiment)
        assert segmenter.classes == [name for name in CLASSES if name not in held_out]
        return segmenter.model.trained_state()

    sky, car, tree = (frames.labels == CLASSES.index(x) for x in ("sky", "car", "tree"))
    swapped = frames.labels.masked_fill(car, 0).masked_fill(sky, CLASSES.index("car"))
    expected = weights(["sky", "car"], frames.labels)
    for labels, same in (
        (swapped, True),
        (frames.labels.masked_fill(car, VOID), True),
        (frames.labels.masked_fill(tree, VOID), False),
    ):
        found = weights(["sky", "car"], labels)
        assert all(torch.equal(found[key], expected[key]) for key in expected) == same


def test_results_are_added_class_by_class(tiny_dataset, tmp_path):
    out = tmp_path / "out.json"
    arguments = [str(tiny_dataset), str(out), "tree", "car, sky", "--profile", "smoke", "--set"]
    leave_one_out.main([*arguments, "crop=32", "lr=1e-3"])
    found = json.loads(out.read_text())
    assert (list(found["held_out"]), found["settings"]["crop"]) == (["tree", "sky,car"], 32)
    for row in found["held_out"].values():
        assert list(row) == ["anchored", "cosine", "clip", "untrained"]
        for means in row.values():
            assert list(means) == ["trained", "held_out", "harmonic"]
            assert 0 <= min(means.values()) <= means["harmonic"] <= max(means.values()) <= 100
    found["held_out"]["tree"] = "kept"
    out.write_text(json.dumps(found))
    leave_one_out.main([*arguments, "crop=32", "lr=1e-3"])
    assert json.loads(out.read_text()) == found
    with pytest.raises(InputError, match="other settings"):
        leave_one_out.main([*arguments, "crop=64"])
    with pytest.raises(InputError, match="choose at most 9"):
        leave_one_out.main([str(tiny_dataset), str(out), ",".join(CLASSES[1:])])


MEANS = [
    ({"car": 60.0, "tree": 20.0, "road": 90.0}, (75, 20, 600 / 19)),
    ({"car": 40.0, "tree": 0.0}, (40, 0, 0)),  # classes without IoU are left out
]


@pytest.mark.parametrize(("iou", "expected"), MEANS)
def test_means(iou, expected):
    found = leave_one_out.means({**dict.fromkeys(CLASSES), **iou}, ["tree", "sky"])
    assert tuple(found.values()) == pytest.approx(expected)
