"""The training loop: what it computes, what it refuses, and that resuming changes nothing."""

import json
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kill_harness import equal
from safetensors.torch import save_file
from torch.nn import functional as F

from camvid_lang import distributed
from camvid_lang.data.camvid import load_camvid
from camvid_lang.data.classes import CLASSES, VOID
from camvid_lang.data.words import class_prompts
from camvid_lang.device import mixed_precision, pick_device
from camvid_lang.errors import InputError, Interrupted
from camvid_lang.evaluation import evaluate, predict
from camvid_lang.experiments import configure
from camvid_lang.models.encoder import TINY, load_clip
from camvid_lang.models.segmentation import Adapter
from camvid_lang.models.text import embed
from camvid_lang.results import read_results
from camvid_lang.runs import build_model, load_run, run
from camvid_lang.training import loop
from camvid_lang.training.checkpoint import KEYS, Checkpoints
from camvid_lang.training.loop import boundary_weights, epoch_batches, segmentation_loss, train


class Stopped(Exception):
    pass


def experiment(name="frozen-names", **changes):
    return configure(name, "smoke", **{"epochs": 3, "limit": 0, **changes})


def stop(history):
    raise Stopped


def trained(entry, data, folder, on_epoch=None):
    """The model and its history."""
    model, _ = build_model(entry)
    frames = load_camvid(data, "trainval")
    return model, train(model, frames, entry, Checkpoints(folder), on_epoch)


def resumed(entry, data, folder):
    """The same, stopped after each of the first two epochs."""
    for _ in range(2):
        with pytest.raises(Stopped):
            trained(entry, data, folder, stop)
    return trained(entry, data, folder)


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
    plain = F.cross_entropy(scores, labels.long() % 11, reduction="none")
    weights = boundary_weights(labels, 4.0) * (labels != VOID)
    expected = (weights * plain * ((1 - (-plain).exp()) / 2).exp()).sum() / weights.sum()
    assert segmentation_loss(scores, labels, 1.0, 4.0).item() == pytest.approx(expected.item())


def test_all_that_is_random_follows_from_seed_and_epoch(tiny_dataset):
    frames, entry = load_camvid(tiny_dataset, "trainval"), experiment(colour_jitter=0.2)

    def drawn(entry, epoch):
        """The crops of an epoch, and what layers draw meanwhile."""
        torch.rand(3)
        return [(*pair, torch.rand(2)) for pair in epoch_batches(frames, entry, epoch)]

    first = drawn(entry, 1)
    assert equal(first, drawn(entry, 1))
    for other in (drawn(entry, 2), drawn(replace(entry, seed=1), 1)):
        assert not any(equal(one, two) for one, two in zip(first[0], other[0], strict=True))


def test_val_is_scored_after_each_epoch_and_changes_nothing(tiny_dataset, tmp_path):
    for folder, score_val in (("plain", False), ("val", True)):
        entry = experiment(train_split="train", epochs=2, score_val=score_val)
        history = run(entry, tiny_dataset, tmp_path / folder, device="cpu")["history"]
    plain, model = (load_run(tmp_path / folder)[0] for folder in ("plain", "val"))
    scored = evaluate(model, load_camvid(tiny_dataset, "val"))
    assert history[-1]["miou_val"] == scored["miou"]
    assert equal(plain.trained_state(), model.trained_state())


def test_a_vocabulary_of_fewer_classes_is_trained_on_and_asked_for_all(tiny_dataset, tmp_path):
    entry, eleven = experiment("adapter-names", lr=2e-3), class_prompts("names")
    frames, chosen = load_camvid(tiny_dataset, "trainval"), ("tree", "car")
    table = torch.full((12,), VOID, dtype=torch.uint8)
    table[[CLASSES.index(name) for name in chosen]] = torch.arange(2, dtype=torch.uint8)
    frames = replace(frames, labels=table[frames.labels.long()])
    model, text_encoder = build_model(entry, {name: eleven[name] for name in chosen})
    history = train(model, frames, entry, Checkpoints(tmp_path))
    assert model.names == newest(tmp_path)["vocabulary"]["names"] == chosen
    assert history[-1]["loss"] < history[0]["loss"]
    test, all_words = load_camvid(tiny_dataset, "test"), embed(eleven, text_encoder)
    for vocabulary in (None, model.vocabulary):
        with pytest.raises(InputError, match="tree, car: give a vocabulary"):
            evaluate(model, test, vocabulary=vocabulary)
    ids = predict(model, test.images, all_words.vectors)
    right = (ids == test.labels)[test.labels != VOID].float().mean().item()
    found = evaluate(model, test, vocabulary=all_words)
    assert found["accuracy"] == pytest.approx(100 * right)
    with pytest.raises(InputError, match="does not compare with words"):
        evaluate(build_model(experiment("swiftnet"))[0], test, vocabulary=all_words)


# Resuming


@pytest.mark.parametrize("name", ["adapter-names", "full-descriptions", "swiftnet"])
def test_stopped_and_resumed_equals_uninterrupted(name, tiny_dataset, tmp_path, monkeypatch):
    def features(self, maps, original=Adapter.features):
        """Draws random numbers, as stochastic depth does in larger encoders."""
        return F.dropout(original(self, maps), 0.3, self.training)

    monkeypatch.setattr(Adapter, "features", features)
    whole, history = trained(experiment(name), tiny_dataset, tmp_path / "whole")
    parts, again = resumed(experiment(name), tiny_dataset, tmp_path / "parts")
    assert [h["loss"] for h in again] == [h["loss"] for h in history]
    assert equal(dict(whole.state_dict()), dict(parts.state_dict()))
    assert newest(tmp_path / "parts").keys() == {*KEYS, "average"}  # and no random states


def test_averaged_weights_resume_exactly_and_are_used(tiny_dataset, tmp_path):
    entry = experiment("best", encoder="camvid-tiny", colour_jitter=0.2, crop=32, width=32)
    whole, _ = trained(entry, tiny_dataset, tmp_path / "whole")
    parts, _ = resumed(entry, tiny_dataset, tmp_path / "checkpoints")
    again, _ = trained(entry, tiny_dataset, tmp_path / "whole")  # finished before
    loaded, found, _ = load_run(tmp_path)
    for other in (parts, again, loaded):
        assert equal(whole.trained_state(), other.trained_state())
    state = newest(tmp_path / "whole")
    assert state["average"]["steps"] == 6
    assert equal(state["average"], newest(tmp_path / "checkpoints")["average"])
    assert not equal(state["model"], whole.trained_state())
    assert (found, loaded.training) == (entry, False)
    assert equal(loaded.vocabulary.state(), state["vocabulary"])


def test_two_processes_need_no_gradients_where_nothing_is_trained(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    model = build_model(configure("bilinear-names", "smoke"))[0]
    assert distributed.replicate(model) is model


@pytest.mark.slow(36)
def test_two_processes_compute_what_one_does(tiny_dataset, tmp_path):
    """With torch's gloo backend. The adapter has no BatchNorm, which torch synchronises on GPUs."""
    settings = {"epochs": 3, "limit": 0, "batch_size": 4, "input_scale": 1.5}
    entry = experiment("adapter-names", **settings)
    whole = run(entry, tiny_dataset, tmp_path / "one", device="cpu")
    with pytest.raises(Stopped):  # the first epoch by one process, the others by two
        run(entry, tiny_dataset, tmp_path / "two", device="cpu", on_epoch=stop)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = ["-m", "camvid_lang", "run", "adapter-names", "--profile", "smoke", "--device", "cpu"]
    command += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    command += ["--data", str(tiny_dataset), "--out", str(tmp_path / "two")]
    done = subprocess.run([sys.executable, *launch, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("resuming after epoch 1") == done.stdout.count("IoU bicyclist") == 1
    shared = read_results(tmp_path / "two" / "results.json")
    for one, two in zip(whole["history"], shared["history"], strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
    assert shared["miou"] == pytest.approx(whole["miou"], abs=0.1)
    assert np.sum(shared["confusion"]) == np.sum(whole["confusion"])
    weights = [newest(tmp_path / name / "checkpoints")["model"] for name in ("one", "two")]
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [1, 4, 12])  # of 4 an epoch, 12 in all
def test_a_signal_stops_after_the_step(number, step, tiny_dataset, tmp_path, monkeypatch):
    entry, taken = experiment(batch_size=2), []
    before = signal.getsignal(signal.SIGINT)  # ignored where a shell runs the tests in background

    def signalled(self, *args, original=loop.EpochMetrics.add):
        taken.append(original(self, *args))
        if len(taken) == step:
            signal.raise_signal(number)

    monkeypatch.setattr(loop.EpochMetrics, "add", signalled)
    with pytest.raises(Interrupted, match="frozen-names: stopped; run again") as caught:
        trained(entry, tiny_dataset, tmp_path / "c")
    monkeypatch.undo()
    assert (caught.value.signal, len(taken)) == (number, step)
    assert Checkpoints(tmp_path / "c").epoch == (step // 4 or -1)
    assert signal.getsignal(signal.SIGINT) is before
    states = [trained(entry, tiny_dataset, tmp_path / x)[0].trained_state() for x in ("new", "c")]
    assert equal(*states)


def test_training_resumes_on_a_device_of_another_precision(tiny_dataset, tmp_path, monkeypatch):
    """A T4 trains with a gradient scaler, newer GPUs and CPUs without."""
    for half in (True, False, True):
        precision = torch.float16 if half else torch.float32
        monkeypatch.setattr(loop, "mixed_precision", lambda _, precision=precision: precision)
        with pytest.raises(Stopped):
            trained(experiment("adapter-names"), tiny_dataset, tmp_path, stop)
        assert bool(newest(tmp_path)["scaler"]) == half
    assert newest(tmp_path)["epoch"] == 3


def test_the_loss_falls_and_both_learning_rates(tiny_dataset, tmp_path):
    settings = {"lr": 2e-3, "encoder_lr": 1e-3, "final_lr_fraction": 0.5}
    _, history = trained(experiment("full-names", **settings), tiny_dataset, tmp_path)
    assert [h["epoch"] for h in history] == [1, 2, 3]
    assert [h["lr"] for h in history] == pytest.approx([2e-3, 1.75e-3, 1.25e-3])
    assert history[-1]["loss"] < history[0]["loss"]
    groups = newest(tmp_path)["optimizer"]["param_groups"]
    found = [(g["lr"], g["weight_decay"]) for g in groups]
    assert found == [pytest.approx((1.25e-3, 1e-4)), pytest.approx((0.625e-3, 2.5e-5))]


@pytest.mark.parametrize("name", ["frozen-names", "full-names"])
def test_a_checkpoint_of_another_run_is_refused(name, tiny_dataset, make_dataset, tmp_path):
    """Weights, prompts and frames are in files whose content and path may change."""
    state, prompts = load_clip(TINY).state_dict(), tmp_path / "prompts.json"
    changed = next(key for key in state if key.startswith("visual") and state[key].ndim == 4)
    for file, weight in (("one", 1), ("same", 1), ("other", 1.01)):
        content = {**state, changed: state[changed] * weight}
        save_file(content, tmp_path / f"{file}.safetensors")

    def resume(weights="same", text=str, data=tiny_dataset, on_epoch=None, **settings):
        prompts.write_text(json.dumps({name: text(name) for name in CLASSES}))
        files = {"weights": f"{tmp_path}/{weights}.safetensors", "text_set": str(prompts)}
        entry = experiment(**{"name": name, "encoder": TINY, **files, **settings})
        return trained(entry, data, tmp_path / "c", on_epoch)[1]

    with pytest.raises(Stopped):
        resume("one", on_epoch=stop)
    other_text = "text_set: the prompts differ; text_set, text_bank or weights: the text embeddings"
    for changes, message in (
        ({"name": "adapter-names"}, f"name was '{name}', now 'adapter-names'"),
        ({"lr": 0.1}, r"lr was 0\.0004, now 0\.1\): undo the change, .*fresh=True"),
        ({"data": make_dataset("other", seed=1)}, "the training frames differ"),  # the same names
        ({"weights": "other"}, "weights: the encoder differs"),
        ({"text": "a {} seen from a car".format}, other_text),
        ({"text": str.upper}, r"\(text_set: the prompts differ\): undo"),  # of the same vectors
    ):
        with pytest.raises(InputError, match=message):
            resume(**changes)
    prompts = prompts.rename(tmp_path / "moved.json")
    assert len(resume()) == 3


def overflow(loss):  # with a good loss
    loss.register_hook(lambda gradient: gradient * torch.inf)
    return loss


def small_memory(_loss):
    raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda loss: loss + torch.nan, "loss is nan in epoch 2; the epoch is not saved: lower lr"),
        (overflow, "weights are not finite in epoch 2; the epoch is not saved: lower lr"),
        (small_memory, r"allocate 2.00 GiB; lower batch_size \(100\) or crop \(64\)"),
    ],
)
def test_an_epoch_that_fails_is_never_saved(spoil, message, tiny_dataset, tmp_path, monkeypatch):
    losses = []

    def second_is_spoiled(*args):
        losses.append(segmentation_loss(*args))
        return spoil(losses[-1]) if len(losses) == 2 else losses[-1]

    monkeypatch.setattr(loop, "segmentation_loss", second_is_spoiled)
    with pytest.raises(InputError, match=message):
        trained(experiment(batch_size=100), tiny_dataset, tmp_path)
    assert Checkpoints(tmp_path).epoch == 1


def test_devices(monkeypatch):
    for name in ("tpu9", "meta"):
        with pytest.raises(InputError, match=f"'{name}'.*use cpu, cuda or auto"):
            pick_device(name)
    cuda = torch.device("cuda")
    for capability, dtype in (((7, 5), torch.float16), ((8, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert mixed_precision(cuda) == dtype
    assert mixed_precision(pick_device("cpu")) == torch.float32
