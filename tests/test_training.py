"""The loop, its learning rates, and going on from a checkpoint."""

import json

import pytest
import torch
from safetensors.torch import save_file

from camvid_lang.data.camvid import load_camvid
from camvid_lang.data.classes import CLASSES
from camvid_lang.device import mixed_precision, pick_device
from camvid_lang.errors import InputError
from camvid_lang.experiments import configure
from camvid_lang.models.encoder import TINY, load_clip
from camvid_lang.run import build_model
from camvid_lang.training import loop as learner
from camvid_lang.training.checkpoint import Checkpoints, load_checkpoint, save_checkpoint
from camvid_lang.training.loop import Trainer, train

CPU = torch.device("cpu")


class Interrupted(Exception):
    pass


def experiment(name="frozen-names", **changes):
    return configure(name, "smoke", **{"epochs": 3, "limit": 0, **changes})


def learn(entry, data, checkpoint, stop_after=None):
    def on_epoch(history):
        if len(history) == stop_after:
            raise Interrupted

    model = build_model(entry)
    return model, train(
        model, load_camvid(data, "trainval"), entry, Checkpoints(checkpoint), CPU, on_epoch
    )


def newest(folder):
    return Checkpoints(folder).newest()[1]


@pytest.mark.parametrize("name", ["frozen-names", "full-descriptions", "swiftnet"])
def test_interrupted_and_resumed_equals_uninterrupted(name, tiny_dataset, tmp_path):
    entry = experiment(name)
    whole, history = learn(entry, tiny_dataset, tmp_path / "whole")
    with pytest.raises(Interrupted):
        learn(entry, tiny_dataset, tmp_path / "parts", stop_after=1)
    parts, resumed = learn(entry, tiny_dataset, tmp_path / "parts")
    assert [h["loss"] for h in resumed] == [h["loss"] for h in history]
    for key, value in whole.state_dict().items():
        assert value.equal(parts.state_dict()[key]), key


@pytest.mark.parametrize("first", [torch.float32, torch.float16])
def test_training_goes_on_on_a_card_of_another_precision(
    first, tiny_dataset, tmp_path, monkeypatch, capsys
):
    """A T4 trains with a gradient scaler, newer cards and CPUs without."""

    class Scaler(torch.amp.GradScaler):  # enabled on a CPU as it is on CUDA
        def __init__(self, device, enabled):
            super().__init__("cpu", enabled=enabled)

    monkeypatch.setattr(torch.amp, "GradScaler", Scaler)
    entry = experiment("adapter-names")
    other = torch.float16 if first == torch.float32 else torch.float32
    monkeypatch.setattr(learner, "mixed_precision", lambda _: first)
    with pytest.raises(Interrupted):
        learn(entry, tiny_dataset, tmp_path, stop_after=1)
    assert bool(newest(tmp_path)["scaler"]) == (first == torch.float16)
    monkeypatch.setattr(learner, "mixed_precision", lambda _: other)
    assert len(learn(entry, tiny_dataset, tmp_path)[1]) == 3
    assert bool(newest(tmp_path)["scaler"]) == (other == torch.float16)
    assert "another precision" in capsys.readouterr().out


def test_loss_falls_and_history_tells_each_epoch(tiny_dataset, tmp_path):
    entry = experiment("swiftnet", epochs=8, lr=2e-3, crop=96)
    _, history = learn(entry, tiny_dataset, tmp_path / "c")
    assert [h["epoch"] for h in history] == list(range(1, 9))
    assert history[-1]["loss"] < history[0]["loss"]
    assert all(0 <= h["miou"] <= 100 for h in history)
    assert history[0]["lr"] == pytest.approx(2e-3)


def test_both_groups_end_at_one_four_hundredth(tiny_dataset, tmp_path):
    learn(experiment("full-names", encoder_lr=1e-4), tiny_dataset, tmp_path / "c")
    groups = newest(tmp_path / "c")["optimizer"]["param_groups"]
    assert [g["lr"] for g in groups] == pytest.approx([1e-6, 2.5e-7])
    assert [g["weight_decay"] for g in groups] == [1e-4, 2.5e-5]


def test_a_finished_training_is_not_repeated(tiny_dataset, tmp_path):
    entry = experiment(epochs=1)
    learn(entry, tiny_dataset, tmp_path / "c")
    before = sorted(tmp_path.glob("c/*"))
    _, history = learn(entry, tiny_dataset, tmp_path / "c")
    assert len(history) == 1
    assert sorted(tmp_path.glob("c/*")) == before


def test_a_checkpoint_of_something_else_is_refused_with_the_difference(tiny_dataset, tmp_path):
    learn(experiment(epochs=1), tiny_dataset, tmp_path / "c")
    for changed, told in (
        (experiment("adapter-names", epochs=1), "is of experiment 'frozen-names'"),
        (experiment(epochs=1, lr=0.1), "lr was 0.0004, now 0.1"),
    ):
        with pytest.raises(InputError, match=told):
            learn(changed, tiny_dataset, tmp_path / "c")


def test_other_weights_or_words_under_the_same_settings_are_refused(tiny_dataset, tmp_path):
    """What a frozen run builds on is in files whose content and place may change."""
    state = load_clip(TINY).state_dict()
    save_file(state, tmp_path / "one.safetensors")
    save_file(state, tmp_path / "same.safetensors")
    changed = next(key for key in state if key.startswith("visual") and state[key].ndim == 4)
    save_file({**state, changed: state[changed] * 1.01}, tmp_path / "other.safetensors")
    words = tmp_path / "words.json"
    words.write_text(json.dumps({name: name for name in CLASSES}))

    def frozen(weights):
        files = {"weights": str(tmp_path / weights), "text_set": str(words)}
        return experiment(encoder=TINY, **files)

    with pytest.raises(Interrupted):
        learn(frozen("one.safetensors"), tiny_dataset, tmp_path / "c", stop_after=1)
    with pytest.raises(InputError, match="weights: those of the frozen encoder differ"):
        learn(frozen("other.safetensors"), tiny_dataset, tmp_path / "c")
    words.write_text(json.dumps({name: f"a {name} seen from a car" for name in CLASSES}))
    with pytest.raises(InputError, match="text_set, text_bank or weights: the classes"):
        learn(frozen("same.safetensors"), tiny_dataset, tmp_path / "c")
    words.write_text(json.dumps({name: [name] for name in CLASSES}))
    _, history = learn(frozen("same.safetensors"), tiny_dataset, tmp_path / "c")
    assert len(history) == 3


class Harmful:
    """Unpickling this would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_damaged_and_harmful_checkpoints_are_refused(tmp_path):
    save_checkpoint(tmp_path / "good.pt", {"settings": {}, "model": {}, "epoch": 1})
    assert load_checkpoint(tmp_path / "good.pt")["epoch"] == 1
    half = (tmp_path / "good.pt").read_bytes()[:-200]
    (tmp_path / "half.pt").write_bytes(half)
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save({"settings": Harmful(tmp_path / "touched")}, tmp_path / "harmful.pt")
    save_checkpoint(tmp_path / "other.pt", {"weights": torch.zeros(2)})
    for name in ("half", "empty", "harmful", "other", "absent"):
        with pytest.raises(InputError, match=f"{name}.pt"):
            load_checkpoint(tmp_path / f"{name}.pt")
    assert not (tmp_path / "touched").exists()


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(tiny_dataset, tmp_path):
    entry = experiment(lr=0.0)
    with pytest.raises(Interrupted):
        learn(entry, tiny_dataset, tmp_path / "c", stop_after=1)
    state = newest(tmp_path / "c")
    key = next(k for k, v in state["model"].items() if v.is_floating_point())
    state["model"][key] = torch.full_like(state["model"][key], 3e38)  # sums overflow
    Checkpoints(tmp_path / "c").save(state, step=3)
    with pytest.raises(InputError, match=r"nan at step 3 \(frames (train|val)/.*last-00000003"):
        learn(entry, tiny_dataset, tmp_path / "c")
    assert newest(tmp_path / "c")["epoch"] == 1


def test_weights_that_are_not_finite_are_never_saved(tiny_dataset, tmp_path, monkeypatch):
    step = Trainer.step

    def spoiling(self, images, labels):
        # After a good loss, as when the gradients overflow: no later step of the epoch tells.
        loss, output = step(self, images, labels)
        if len(self.history) == 1:
            next(self.model.decoder_parameters()).data.view(-1)[0] = float("inf")
        return loss, output

    monkeypatch.setattr(Trainer, "step", spoiling)
    entry = experiment(batch_size=100)  # one step an epoch
    with pytest.raises(
        InputError, match=r"^weight \S+ became not finite at step 2 \(.*last-00000001"
    ):
        learn(entry, tiny_dataset, tmp_path / "c")
    assert [path.name[:13] for path in Checkpoints(tmp_path / "c").files()] == ["last-00000001"]
    assert all(value.isfinite().all() for value in newest(tmp_path / "c")["model"].values())


def test_whole_frames_are_trained_on_with_crop_0(tiny_dataset, tmp_path, monkeypatch):
    shapes = set()
    step = Trainer.step

    def watched(self, images, labels):
        shapes.add((images.shape[2:], labels.shape[1:]))
        return step(self, images, labels)

    monkeypatch.setattr(Trainer, "step", watched)
    learn(experiment(epochs=1, crop=0), tiny_dataset, tmp_path / "c")
    assert shapes == {((96, 128), (96, 128))}


def test_devices(monkeypatch):
    assert pick_device("cpu") == CPU
    with pytest.raises(InputError, match="'tpu9'"):
        pick_device("tpu9")
    cuda = torch.device("cuda")
    for capability, dtype in (((7, 5), torch.float16), ((8, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert mixed_precision(cuda) == dtype
    assert mixed_precision(CPU) == torch.float32
