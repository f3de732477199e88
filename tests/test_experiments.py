"""The registry states the thesis; profiles and settings change only what they name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from camvid_lang import experiments
from camvid_lang.errors import InputError
from camvid_lang.experiments import EXPERIMENTS, configure, learning_rate_factor
from camvid_lang.report.thesis import THESIS_ROWS


def test_one_entry_per_row_of_the_thesis():
    assert list(EXPERIMENTS) == [*THESIS_ROWS, "full-names", "swiftnet-best", "best"]


def test_settings_are_the_thesiss():
    names = ("frozen-names", "full-descriptions", "full-narrow-descriptions")
    frozen, full, narrow = map(EXPERIMENTS.get, names)
    for entry in (frozen, full, narrow):
        assert (entry.lr, entry.weight_decay, entry.temperature) == (4e-4, 1e-4, 0.01)
        assert (entry.crop, entry.width, entry.spp_bottleneck) == (224, 640, 512)
        assert (entry.train_split, entry.test_split) == ("trainval", "test")
    assert (frozen.epochs, frozen.batch_size, frozen.train_encoder) == (240, 6, False)
    assert (full.epochs, full.batch_size, full.train_encoder) == (400, 6, True)
    assert (full.encoder_lr, full.encoder_weight_decay) == (1e-4, 2.5e-5)
    assert (full.spp_width, narrow.spp_width, narrow.batch_size) == (640, 160, 10)
    assert frozen.final_lr_fraction * frozen.lr == pytest.approx(1e-6)
    assert full.final_lr_fraction * full.encoder_lr == pytest.approx(2.5e-7)


@given(epochs=st.integers(1, 500), data=st.data())
def test_learning_rate_falls_from_all_to_a_fraction_after_warmup(epochs, data):
    epoch = data.draw(st.integers(0, epochs - 1))
    now, after = (learning_rate_factor(e, epochs, 1 / 400) for e in (epoch, epoch + 1))
    assert 1 / 400 <= after < now <= 1
    assert learning_rate_factor(0, epochs, 1 / 400) == 1
    assert learning_rate_factor(epochs, epochs, 1 / 400) == pytest.approx(1 / 400)
    factors = [learning_rate_factor(epoch, 20, 0.01, warmup=4) for epoch in range(5)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1])
    assert learning_rate_factor(0, 1, 0.01, warmup=5) == 1


@pytest.mark.parametrize(
    ("name", "profile", "settings", "expected"),
    [
        ("frozen-names", "cpu", {}, {"encoder": "camvid-tiny", "weights": ""}),
        ("frozen-names", "cpu", {"weights": "w"}, {"encoder": "resnet18", "weights": "w"}),
        ("bilinear-names", "cpu", {"weights": "w"}, {"encoder": "camvid-tiny"}),
        ("swiftnet", "cpu", {}, {"weights": "random"}),
        ("full-narrow-descriptions", "cpu", {}, {"spp_width": 16}),
        ("full-narrow-descriptions", "cpu", {"weights": "w"}, {"spp_width": 32}),
        ("full-descriptions", "cpu", {}, {"width": 64}),  # as wide as the tiny CLIP's text
        ("frozen-names", "quick", {}, {"epochs": 30, "width": 640}),
        ("frozen-names", "smoke", {"epochs": "3", "lr": "1e-3"}, {"epochs": 3, "lr": 1e-3}),
        ("frozen-names", "smoke", {"train_encoder": "true"}, {"train_encoder": True, "limit": 8}),
    ],
)
def test_profiles_and_settings(name, profile, settings, expected):
    found = configure(name, profile, **settings).settings()
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("frozen-name", {}, "did you mean 'frozen-names'"),
        ("frozen-names", {"profile": "fast"}, "unknown profile 'fast'"),
        ("frozen-names", {"epoch": "3"}, "did you mean 'epochs'"),
        ("frozen-names", {"model": "swiftnet"}, "unknown setting 'model'"),
        ("frozen-names", {"epochs": "many"}, "epochs='many'"),
        ("frozen-names", {"epochs": True}, "whole number"),
        ("frozen-names", {"lr": "nan"}, "between"),
        ("frozen-names", {"train_encoder": "perhaps"}, "true or false"),
        ("frozen-names", {"test_split": "tset"}, "test_split"),
        ("frozen-names", {"crop": 31}, "crop=31: choose at least 32"),
        ("frozen-names", {"batch_size": "1"}, "batch_size=1: frozen-names needs at least 2"),
        ("bilinear-names", {"epochs": "1"}, "epochs=1: bilinear-names has nothing to train"),
        ("bilinear-names", {"encoder": "resnet18"}, "needs CLIP"),
        ("swiftnet", {"encoder": "camvid-tiny"}, "built on resnet18"),
        ("best", {"scale_min": 3}, r"scale_min=3\.0: exceeds scale_max=2\.0"),
        ("full-names", {"score_val": True}, "set train_split=train"),
        ("bilinear-names", {"score_val": True}, "is not trained"),
    ],
)
def test_what_is_wrong_is_named(name, settings, message):
    with pytest.raises(InputError, match=message) as caught:
        configure(name, **{"profile": "cpu", **settings})
    assert "\n" not in str(caught.value)


def test_an_experiment_is_restored():
    entry = configure("swiftnet", seed=3)
    assert experiments.restore(entry.settings()) == entry
    changes = {r"another version \(new\)": {"new": 1}, "no such experiment": {"name": "nothing"}}
    for message, change in changes.items():
        with pytest.raises(InputError, match=message):
            experiments.restore({**entry.settings(), **change})
