"""The training loop: what it computes, what it refuses, and that resuming changes nothing."""

import json
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kill_harness import equal
from PIL import Image
from safetensors.torch import save_file

from camvid_lang.cli import main
from camvid_lang.data.camvid import load_camvid
from camvid_lang.data.classes import CLASSES, VOID
from camvid_lang.device import mixed_precision, pick_device
from camvid_lang.errors import InputError, Interrupted
from camvid_lang.evaluation import evaluate
from camvid_lang.experiments import configure
from camvid_lang.models.encoder import TINY, load_clip
from camvid_lang.report.figures import curves
from camvid_lang.results import read_results
from camvid_lang.run import build_model, load_run, run
from camvid_lang.segmenter import load
from camvid_lang.training import loop
from camvid_lang.training.checkpoint import Checkpoints
from camvid_lang.training.loop import Trainer, boundary_weights, segmentation_loss, train

CPU = torch.device("cpu")


class Stopped(Exception):
    pass


def experiment(name="frozen-names", **changes):
    return configure(name, "smoke", **{"epochs": 3, "limit": 0, **changes})


def trained(entry, data, folder, stop_after=None):
    """Weights and history, or `Stopped` after so many epochs."""

    def on_epoch(history):
        if len(history) == stop_after:
            raise Stopped

    model, _ = build_model(entry)
    frames = load_camvid(data, "trainval")
    return model, train(model, frames, entry, Checkpoints(folder), CPU, on_epoch)


def newest(folder):
    return Checkpoints(folder).newest()[1]


@given(seed=st.integers(0, 10**6), size=st.tuples(st.integers(2, 45), st.integers(2, 45)))
@settings(max_examples=25, deadline=None)
def test_boundary_weights_fall_with_the_distance_to_another_class(seed, size):
    random = np.random.default_rng(seed)
    labels = np.zeros(size, np.uint8)
    for _ in range(random.integers(0, 4)):
        top, left = random.integers(0, size[0]), random.integers(0, size[1])
        labels[top : top + random.integers(1, 30), left : left + 9] = random.integers(0, 12)
    found = boundary_weights(torch.from_numpy(labels)[None], 8.0)[0].numpy()
    pixels = np.argwhere(np.ones(size))
    others = labels.ravel()[:, None] != labels.ravel()
    steps = abs(pixels[:, None] - pixels).max(axis=2)
    distance = np.where(others, steps, 10**6).min(axis=1).reshape(size)
    expected = np.select([distance <= d for d in (1, 4, 16, 32)], [8, 6, 4, 2], 1)
    np.testing.assert_array_equal(found, expected)


def test_the_boundary_aware_loss_is_a_weighted_mean():
    scores, labels = torch.randn(2, 11, 9, 9), torch.randint(0, 12, (2, 9, 9)).to(torch.uint8)
    plain = torch.nn.functional.cross_entropy(scores, labels.long() % 11, reduction="none")
    weights = boundary_weights(labels, 4.0) * (labels != VOID)
    expected = (weights * plain * ((1 - (-plain).exp()) / 2).exp()).sum() / weights.sum()
    assert segmentation_loss(scores, labels, 1.0, 4.0).item() == pytest.approx(expected.item())


# Several data sets with classes of their own


def coarse_copy(data, folder, words=("plant", "car | lorry")):
    """The data set with ids 0 (classes up to tree) and 1, and void, 2."""
    shutil.copytree(data, folder)
    merge = np.array([0] * 6 + [1] * 5 + [2], np.uint8)
    for path in folder.glob("*annot/*.png"):
        Image.fromarray(merge[np.array(Image.open(path))]).save(path)
    (folder / "dataset.json").write_text(json.dumps({"name": "coarse", "classes": words}))
    return folder


def test_a_crop_is_compared_with_the_words_of_its_own_set():
    entry = experiment("full-names")
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    labels = torch.randint(0, 11, (4, 64, 64)).to(torch.uint8)
    grads = []
    for split in (False, True):
        model, _ = build_model(entry)
        trainer = Trainer(model.train(), entry, CPU, "")
        flipped = model.text.flip(0)  # the second set's classes in another order
        words = [(2, model.text), (2, flipped)] if split else ()
        own = torch.cat([labels[:2], 10 - labels[2:]]) if split else labels
        loss, output = trainer.step(images, own, words)
        grads.append((loss, [p.grad for p in model.parameters()]))
        assert len(output) == (2 if split else 4)
    torch.testing.assert_close(grads[0][0], grads[1][0])
    for one, other in zip(grads[0][1], grads[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_training_on_two_sets_is_scored_on_both_and_known_by_their_content(
    tiny_dataset, tmp_path, capsys
):
    other = coarse_copy(tiny_dataset, tmp_path / "coarse")
    options = ["--data", str(tiny_dataset), "--out", str(tmp_path / "run"), "--profile", "smoke"]
    command = ["run", "frozen-names", *options, "--set", f"also={other}"]
    assert main(command) == 0
    assert "over plant, car | lorry" in capsys.readouterr().out
    found = read_results(tmp_path / "run" / "results.json")
    assert found["also"]["coarse"]["iou"].keys() == {"plant", "car | lorry"}
    assert np.array(found["also"]["coarse"]["confusion"]).shape == (3, 3)
    assert found["data"]["also"][0]["train_frames"] == 8
    assert "also trained on coarse" in (tmp_path / "run" / "report.html").read_text()
    text = load(tmp_path / "run", device="cpu")
    frames = load_camvid(other, "test", any_classes=True)
    again = evaluate(text.model, frames, text=torch.from_numpy(text.embed(WORDS)))
    assert again["miou"] == found["also"]["coarse"]["miou"]
    with pytest.raises(InputError, match="the frames have 2 classes"):
        evaluate(text.model, frames)
    moved = shutil.move(other, tmp_path / "moved")
    assert main([*command[:-1], f"also={moved}"]) == 0
    label = next((moved / "trainannot").iterdir())
    Image.fromarray(2 - np.array(Image.open(label))).save(label)
    assert main([*command[:-1], f"also={moved}"]) == 1
    assert "data sets of also differ" in capsys.readouterr().err
    assert main([*command[:-1], "also=nowhere"]) == 1
    assert "also=nowhere: nowhere is not a folder" in capsys.readouterr().err
    assert torch.equal(text.model.anchors, text.model.text)  # each class once
    assert main(["run", "frozen-names", *options, "--data", str(moved)]) == 1
    assert "other classes than CamVid's" in capsys.readouterr().err
    assert main(["data", "convert", str(moved), str(tmp_path / "new")]) == 1
    assert "other classes than CamVid's" in capsys.readouterr().err
    label = next((moved / "valannot").iterdir())
    Image.fromarray(np.full((96, 128), 3, np.uint8)).save(label)
    assert main(["data", "verify", str(moved)]) == 1
    assert "id 3 is not in 0..2" in capsys.readouterr().out


WORDS = {"plant": ["plant"], "car": ["car", "lorry"]}


@pytest.mark.parametrize(
    "classes", ["road", ["road"], ["road", "Road "], ["road", 3], [" ", "a"], ["car |", "road"]]
)
def test_other_classes_of_a_set_are_checked(classes, tiny_dataset):
    (tiny_dataset / "dataset.json").write_text(json.dumps({"classes": classes}))
    with pytest.raises(InputError, match="give 2 to 200 different texts"):
        load_camvid(tiny_dataset, "test")


def test_val_is_scored_after_each_epoch_and_changes_nothing(tiny_dataset, tmp_path):
    on_train = {"train_split": "train", "epochs": 2}
    for folder, more in (("plain", {}), ("val", {"score_val": True})):
        run(experiment(**on_train, **more), tiny_dataset, tmp_path / folder, device="cpu")
    results = read_results(tmp_path / "val" / "results.json")
    model, _, _ = load_run(tmp_path / "val")
    scored = evaluate(model, load_camvid(tiny_dataset, "val"))
    assert [entry["miou_val"] for entry in results["history"]][-1] == scored["miou"]
    axes = curves({"a": results["history"]}).axes[1]
    assert len(axes.lines) == 2
    plain = load_run(tmp_path / "plain")[0]
    assert equal(plain.trained_state(), model.trained_state())


# Resuming


@pytest.mark.parametrize("name", ["frozen-names", "full-descriptions", "swiftnet"])
def test_stopped_and_resumed_equals_uninterrupted(name, tiny_dataset, tmp_path):
    entry = experiment(name)
    whole, history = trained(entry, tiny_dataset, tmp_path / "whole")
    for epoch in (1, 2):
        with pytest.raises(Stopped):
            trained(entry, tiny_dataset, tmp_path / "parts", stop_after=epoch)
    parts, resumed = trained(entry, tiny_dataset, tmp_path / "parts")
    assert [h["loss"] for h in resumed] == [h["loss"] for h in history]
    assert equal(dict(whole.state_dict()), dict(parts.state_dict()))


def test_averaged_weights_resume_exactly_and_are_used(tiny_dataset, tmp_path):
    entry = experiment("best", encoder="camvid-tiny", colour_jitter=0.2, crop=32, width=32)
    whole, _ = trained(entry, tiny_dataset, tmp_path / "whole")
    for epoch in (1, 2):
        with pytest.raises(Stopped):
            trained(entry, tiny_dataset, tmp_path / "checkpoints", stop_after=epoch)
    parts, _ = trained(entry, tiny_dataset, tmp_path / "checkpoints")
    assert equal(whole.trained_state(), parts.trained_state())
    state = newest(tmp_path / "whole")
    assert state["average"]["steps"] == 6
    assert equal(state["average"], newest(tmp_path / "checkpoints")["average"])
    assert not equal(state["model"], whole.trained_state())
    again, _ = trained(entry, tiny_dataset, tmp_path / "whole")  # finished before
    loaded, _, _ = load_run(tmp_path)
    assert equal(whole.trained_state(), again.trained_state())
    assert equal(whole.trained_state(), loaded.trained_state())


@pytest.mark.slow(36)
def test_two_processes_compute_what_one_does(tiny_dataset, tmp_path):
    """With torch's gloo backend. The adapter has no BatchNorm, which torch synchronises on GPUs."""
    settings = {"epochs": 3, "limit": 0, "batch_size": 4, "input_scale": 1.5}
    entry = configure("adapter-names", "smoke", **settings)
    whole = run(entry, tiny_dataset, tmp_path / "one", device="cpu")

    def stop(history):
        raise Stopped

    with pytest.raises(Stopped):  # the first epoch by one process, the others by two
        run(entry, tiny_dataset, tmp_path / "two", device="cpu", on_epoch=stop)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = ["-m", "camvid_lang", "run", "adapter-names", "--profile", "smoke"]
    command += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    command += ["--data", str(tiny_dataset), "--out", str(tmp_path / "two"), "--device", "cpu"]
    done = subprocess.run([sys.executable, *launch, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("resuming after epoch 1") == done.stdout.count("IoU bicyclist") == 1
    shared = read_results(tmp_path / "two" / "results.json")
    for one, two in zip(whole["history"], shared["history"], strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert two["miou"] == pytest.approx(one["miou"], abs=0.1)
    assert shared["miou"] == pytest.approx(whole["miou"], abs=0.1)
    assert np.sum(shared["confusion"]) == np.sum(whole["confusion"])
    weights = [newest(tmp_path / name / "checkpoints")["model"] for name in ("one", "two")]
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=1e-3, atol=1e-4)


def test_layers_that_draw_random_numbers_resume_exactly(tiny_dataset, tmp_path, monkeypatch):
    """As stochastic depth does in larger encoders."""
    step = Trainer.step

    def noisy(self, images, labels, *rest):
        return step(self, images / 255 + 0.1 * torch.rand(images.shape), labels, *rest)

    monkeypatch.setattr(Trainer, "step", noisy)
    entry = experiment("adapter-names")
    whole, _ = trained(entry, tiny_dataset, tmp_path / "whole")
    with pytest.raises(Stopped):
        trained(entry, tiny_dataset, tmp_path / "parts", stop_after=2)
    parts, _ = trained(entry, tiny_dataset, tmp_path / "parts")
    assert equal(whole.trained_state(), parts.trained_state())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [1, 4, 6, 12])  # of 4 an epoch, 12 in all
def test_a_signal_stops_after_the_step(number, step, tiny_dataset, tmp_path, monkeypatch):
    entry, taken = experiment(batch_size=2), []
    before = signal.getsignal(signal.SIGINT)  # ignored where a shell runs the tests in background

    def signalled(self, *args, original=Trainer.step):
        taken.append(original(self, *args))
        if len(taken) == step:
            signal.raise_signal(number)
        return taken[-1]

    monkeypatch.setattr(Trainer, "step", signalled)
    with pytest.raises(Interrupted, match="frozen-names: stopped; run again") as caught:
        trained(entry, tiny_dataset, tmp_path / "c")
    monkeypatch.undo()
    assert caught.value.signal == number
    assert len(taken) == step
    assert [path.name for path in Checkpoints(tmp_path / "c").files()][-1:] == (
        [f"last-{step // 4:04d}.pt"] if step >= 4 else []
    )
    assert signal.getsignal(signal.SIGINT) is before
    whole, _ = trained(entry, tiny_dataset, tmp_path / "whole")
    resumed, _ = trained(entry, tiny_dataset, tmp_path / "c")
    assert equal(whole.trained_state(), resumed.trained_state())


@pytest.mark.parametrize("first", [torch.float32, torch.float16])
def test_training_resumes_on_a_device_of_another_precision(
    first, tiny_dataset, tmp_path, monkeypatch
):
    """A T4 trains with a gradient scaler, newer GPUs and CPUs without."""

    class Scaler(torch.amp.GradScaler):  # enabled on a CPU as it is on CUDA
        def __init__(self, device, enabled):
            super().__init__("cpu", enabled=enabled)

    monkeypatch.setattr(torch.amp, "GradScaler", Scaler)
    entry = experiment("adapter-names")
    other = torch.float16 if first == torch.float32 else torch.float32
    monkeypatch.setattr(loop, "mixed_precision", lambda _: first)
    with pytest.raises(Stopped):
        trained(entry, tiny_dataset, tmp_path, stop_after=1)
    assert bool(newest(tmp_path)["scaler"]) == (first == torch.float16)
    monkeypatch.setattr(loop, "mixed_precision", lambda _: other)
    assert len(trained(entry, tiny_dataset, tmp_path)[1]) == 3
    assert bool(newest(tmp_path)["scaler"]) == (other == torch.float16)


def test_the_loss_falls_and_history_has_each_epoch(tiny_dataset, tmp_path):
    _, history = trained(experiment("swiftnet", epochs=5, lr=2e-3), tiny_dataset, tmp_path)
    assert [h["epoch"] for h in history] == list(range(1, 6))
    assert history[-1]["loss"] < history[0]["loss"]
    assert all(0 <= h["miou"] <= 100 for h in history)
    assert history[0]["lr"] == pytest.approx(2e-3)


def test_both_groups_are_annealed(tiny_dataset, tmp_path):
    entry = experiment("full-names", encoder_lr=1e-4, epochs=2, final_lr_fraction=0.5)
    trained(entry, tiny_dataset, tmp_path)
    groups = newest(tmp_path)["optimizer"]["param_groups"]
    assert [g["lr"] for g in groups] == pytest.approx([3e-4, 0.75e-4])  # halfway, in epoch 2 of 2
    assert [g["weight_decay"] for g in groups] == [1e-4, 2.5e-5]


def test_a_checkpoint_of_another_run_is_refused(tiny_dataset, make_dataset, tmp_path):
    trained(experiment(epochs=1), tiny_dataset, tmp_path / "c")
    other = make_dataset("other", seed=1)  # the same names
    for entry, data, message in (
        (experiment("adapter-names", epochs=1), tiny_dataset, "name was 'frozen-names', now 'ada"),
        (experiment(epochs=1, lr=0.1), tiny_dataset, r"lr was 0\.0004, now 0\.1\).*--fresh"),
        (experiment(epochs=1), other, "the training frames differ"),
    ):
        with pytest.raises(InputError, match=message):
            trained(entry, data, tmp_path / "c")


@pytest.mark.parametrize("name", ["frozen-names", "full-names"])
def test_other_weights_or_prompts_under_the_same_settings_are_refused(name, tiny_dataset, tmp_path):
    """Weights and prompts are in files whose content and path may change."""
    state = load_clip(TINY).state_dict()
    save_file(state, tmp_path / "one.safetensors")
    save_file(state, tmp_path / "same.safetensors")
    changed = next(key for key in state if key.startswith("visual") and state[key].ndim == 4)
    save_file({**state, changed: state[changed] * 1.01}, tmp_path / "other.safetensors")
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps({name: name for name in CLASSES}))

    def frozen(weights, text_set="prompts.json"):
        files = {"weights": str(tmp_path / weights), "text_set": str(tmp_path / text_set)}
        return experiment(name, encoder=TINY, **files)

    with pytest.raises(Stopped):
        trained(frozen("one.safetensors"), tiny_dataset, tmp_path / "c", stop_after=1)
    with pytest.raises(InputError, match="weights: those of the encoder differ"):
        trained(frozen("other.safetensors"), tiny_dataset, tmp_path / "c")
    prompts.write_text(json.dumps({name: f"a {name} seen from a car" for name in CLASSES}))
    with pytest.raises(InputError, match="text_set, text_bank or weights: the text embeddings"):
        trained(frozen("same.safetensors"), tiny_dataset, tmp_path / "c")
    (tmp_path / "moved.json").write_text(json.dumps({name: [name] for name in CLASSES}))
    moved = frozen("same.safetensors", "moved.json")
    assert len(trained(moved, tiny_dataset, tmp_path / "c")[1]) == 3


def test_other_prompts_are_refused_even_with_the_same_vectors(tiny_dataset, tmp_path):
    def stop(_history):
        raise Stopped

    prompts = tmp_path / "prompts.json"
    entry = experiment("adapter-names", text_set=str(prompts))
    prompts.write_text(json.dumps({name: name for name in CLASSES}))
    with pytest.raises(Stopped):
        run(entry, tiny_dataset, tmp_path / "out", on_epoch=stop)
    prompts.write_text(json.dumps({name: name.upper() for name in CLASSES}))
    with pytest.raises(InputError, match="text_set: the prompts differ"):
        run(entry, tiny_dataset, tmp_path / "out")


@pytest.mark.parametrize("what", ["loss", "weight"])
def test_what_is_not_finite_is_never_saved(what, tiny_dataset, tmp_path, monkeypatch):
    def spoiled(self, *args, original=Trainer.step):
        loss, output = original(self, *args)
        if len(self.history) == 1 and what == "loss":
            loss = loss * torch.nan
        elif len(self.history) == 1:  # after a good loss, as when the gradients overflow
            next(self.model.decoder_parameters()).data.view(-1)[0] = torch.inf
        return loss, output

    monkeypatch.setattr(Trainer, "step", spoiled)
    message = "loss is nan" if what == "loss" else "weights are not finite"
    with pytest.raises(InputError, match=f"{message} in epoch 2; the epoch is not saved: lower lr"):
        trained(experiment(batch_size=100), tiny_dataset, tmp_path)
    assert [path.name for path in Checkpoints(tmp_path).files()] == ["last-0001.pt"]


def test_too_little_memory_names_the_settings_to_lower(tiny_dataset, tmp_path, monkeypatch):
    def small_memory(*_args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(loop, "segmentation_loss", small_memory)
    message = r"Tried to allocate 2.00 GiB; lower batch_size \(8\) or crop \(64\)"
    with pytest.raises(InputError, match=message):
        trained(experiment(batch_size=8), tiny_dataset, tmp_path)


def test_whole_frames_are_trained_on_with_crop_0(tiny_dataset, tmp_path, monkeypatch):
    shapes = set()

    def watched(self, images, labels, words, original=Trainer.step):
        shapes.add((images.shape[2:], labels.shape[1:]))
        return original(self, images, labels, words)

    monkeypatch.setattr(Trainer, "step", watched)
    trained(experiment(epochs=1, crop=0), tiny_dataset, tmp_path)
    assert shapes == {((96, 128), (96, 128))}


def test_devices(monkeypatch):
    assert pick_device("cpu") == CPU
    for name in ("tpu9", "meta"):
        with pytest.raises(InputError, match=f"'{name}'.*use cpu, cuda or auto"):
            pick_device(name)
    cuda = torch.device("cuda")
    for capability, dtype in (((7, 5), torch.float16), ((8, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert mixed_precision(cuda) == dtype
    assert mixed_precision(CPU) == torch.float32
