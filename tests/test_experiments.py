"""The registry states the thesis; profiles and settings change only what they name."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from camvid_lang.data.classes import CLASSES
from camvid_lang.errors import InputError
from camvid_lang.experiments import (
    EXPERIMENTS,
    SETTINGS,
    Experiment,
    configure,
    learning_rate_factor,
    restore,
)
from camvid_lang.report.thesis import THESIS_ROWS


def test_one_entry_per_row_of_the_thesis():
    assert list(EXPERIMENTS) == [*THESIS_ROWS, "full-names", "held-out", "swiftnet-best", "best"]
    assert all(entry.name == name for name, entry in EXPERIMENTS.items())


def test_settings_are_the_thesiss():
    frozen, full, narrow = (
        EXPERIMENTS[n] for n in ("frozen-names", "full-descriptions", "full-narrow-descriptions")
    )
    for entry in (frozen, full, narrow):
        assert (entry.lr, entry.weight_decay, entry.temperature) == (4e-4, 1e-4, 0.01)
        assert (entry.crop, entry.width, entry.spp_bottleneck) == (224, 640, 512)
        assert entry.train_split == "trainval"
        assert entry.test_split == "test"
    assert (frozen.epochs, frozen.batch_size, frozen.train_encoder) == (240, 6, False)
    assert (full.epochs, full.batch_size, full.train_encoder) == (400, 6, True)
    assert (full.encoder_lr, full.encoder_weight_decay) == (1e-4, 2.5e-5)
    assert (full.spp_width, narrow.spp_width, narrow.batch_size) == (640, 160, 10)
    assert frozen.final_lr_fraction * frozen.lr == pytest.approx(1e-6)
    assert full.final_lr_fraction * full.encoder_lr == pytest.approx(2.5e-7)


@given(epochs=st.integers(1, 500), data=st.data())
def test_learning_rate_falls_from_all_to_a_fraction(epochs, data):
    epoch = data.draw(st.integers(0, epochs - 1))
    now, after = (learning_rate_factor(e, epochs, 1 / 400) for e in (epoch, epoch + 1))
    assert 1 / 400 <= after < now <= 1
    assert learning_rate_factor(0, epochs, 1 / 400) == 1
    assert learning_rate_factor(epochs, epochs, 1 / 400) == pytest.approx(1 / 400)


def test_warmup_rises_to_the_start_of_the_annealing():
    factors = [learning_rate_factor(epoch, 20, 0.01, warmup=4) for epoch in range(21)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1])
    assert factors[20] == pytest.approx(0.01)
    assert learning_rate_factor(0, 1, 0.01, warmup=5) == 1


def test_the_cpu_profile_takes_resnet18_where_its_weights_are_given():
    assert configure("frozen-names", "cpu").encoder == "camvid-tiny"
    given = configure("frozen-names", "cpu", weights="w.safetensors")
    assert (given.encoder, given.weights) == ("resnet18", "w.safetensors")
    assert configure("swiftnet", "cpu").weights == "random"
    assert configure("swiftnet", "cpu", encoder="resnet18").weights == "random"  # as without
    assert configure("swiftnet").weights == ""  # ImageNet, from the hub
    assert configure("bilinear-names", "cpu", weights="w").encoder == "camvid-tiny"
    narrow = "full-narrow-descriptions"
    assert configure(narrow, "cpu").spp_width == 16
    assert configure(narrow, "cpu", weights="w").spp_width == 32
    assert configure("full-descriptions", "cpu").width == 64  # as wide as the tiny CLIP's text
    assert configure("bilinear-names", "smoke").epochs == 0


def test_settings_are_read_from_text():
    entry = configure("frozen-names", "smoke", epochs="3", lr="1e-3", train_encoder="true", seed=7)
    assert (entry.epochs, entry.lr, entry.train_encoder, entry.seed) == (3, 1e-3, True, 7)
    assert entry.profile == "smoke"


@pytest.mark.parametrize(
    ("name", "profile", "settings", "message"),
    [
        ("frozen-name", "cpu", {}, "did you mean 'frozen-names'"),
        ("frozen-names", "fast", {}, "unknown profile 'fast'"),
        ("frozen-names", "cpu", {"epoch": "3"}, "did you mean 'epochs'"),
        ("frozen-names", "cpu", {"model": "swiftnet"}, "unknown setting 'model'"),
        ("frozen-names", "cpu", {"epochs": "many"}, "epochs='many'"),
        ("frozen-names", "cpu", {"epochs": "1.5"}, "whole number"),
        ("frozen-names", "cpu", {"epochs": True}, "whole number"),
        ("frozen-names", "cpu", {"epochs": "-1"}, "between"),
        ("frozen-names", "cpu", {"lr": "nan"}, "between"),
        ("frozen-names", "cpu", {"train_encoder": "perhaps"}, "true or false"),
        ("frozen-names", "cpu", {"test_split": "tset"}, "test_split"),
        ("frozen-names", "cpu", {"batch_size": "0"}, "batch_size=0"),
        ("frozen-names", "cpu", {"crop": 31}, "crop=31: choose at least 32"),
        ("frozen-names", "cpu", {"batch_size": "1"}, "batch_size=1: frozen-names needs at least 2"),
        ("swiftnet", "cpu", {"batch_size": "1"}, "BatchNorm"),
        ("bilinear-names", "cpu", {"epochs": "1"}, "epochs=1: bilinear-names has nothing to train"),
        ("bilinear-names", "cpu", {"encoder": "resnet18"}, "has none"),
        ("swiftnet", "cpu", {"encoder": "camvid-tiny"}, "built on resnet18"),
        ("best", "cpu", {"scale_min": 3}, r"scale_min=3\.0 exceeds scale_max=2\.0"),
        ("swiftnet", "cpu", {"also": "x"}, "trains nothing with words"),
        ("held-out", "cpu", {"also": "x"}, "unset one"),
        ("full-names", "cpu", {"score_val": True}, "set train_split=train"),
        ("frozen-names", "cpu", {"held_out": "lorry"}, "not a class of CamVid"),
        ("swiftnet", "cpu", {"held_out": "car"}, "no trained words"),
        ("bilinear-names", "cpu", {"held_out": "car"}, "no trained words"),
        ("frozen-names", "cpu", {"held_out": ",".join(CLASSES)}, "at least two classes"),
    ],
)
def test_what_is_wrong_is_named(name, profile, settings, message):
    with pytest.raises(InputError, match=message) as caught:
        configure(name, profile, **settings)
    assert "\n" not in str(caught.value)


def test_an_experiment_is_flat_frozen_and_restored():
    entry = configure("swiftnet", seed=3)
    assert restore(entry.settings()) == entry
    assert all(isinstance(v, str | int | float | bool) for v in entry.settings().values())
    with pytest.raises(dataclasses.FrozenInstanceError):
        entry.epochs = 1
    with pytest.raises(InputError, match=r"another version \(new\)"):
        restore({**entry.settings(), "new": 1})
    with pytest.raises(InputError, match="no such experiment"):
        restore({**entry.settings(), "name": "nothing"})
    with pytest.raises(InputError, match="a number is expected"):
        restore({**entry.settings(), "lr": 10**400})


def test_every_setting_has_a_help_text_and_a_default():
    assert set(Experiment.__dataclass_fields__) - set(SETTINGS) == {"name", "model", "profile"}
    for field in SETTINGS.values():
        assert field.metadata["help"]
        assert isinstance(field.default, field.type)
