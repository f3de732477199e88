"""Files and texts from outside: a defined result or one line, never a traceback, never code.

The fuzzing starts from valid files and damages them (bytes changed, cut, inserted, swapped), since
random bytes never get past a file's first four.
"""

import contextlib
import dataclasses
import io
import json
import pickle
import tarfile
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from camvid_lang.cli import main
from camvid_lang.data import download
from camvid_lang.data.camvid import read_image, read_label, read_manifest
from camvid_lang.errors import InputError
from camvid_lang.experiments import EXPERIMENTS, PROFILES, Experiment, configure, restore
from camvid_lang.models.text import (
    CLIPText,
    PhraseFile,
    class_phrases,
    embed_classes,
    parse_classes,
)
from camvid_lang.report.html import report_runs
from camvid_lang.results import FigureData, read_figures, read_results, write_figures
from camvid_lang.run import run
from camvid_lang.segmenter import read_phrases, segment_files
from camvid_lang.training.checkpoint import load_checkpoint, save_checkpoint

# Of the archives made here, not of the code that reads them.
pytestmark = pytest.mark.filterwarnings("ignore:Duplicate name")
CASES: Counter[str] = Counter()
LEAST = 2000


def fuzz(cases):
    return settings(
        max_examples=cases,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )


@contextlib.contextmanager
def refused(kind):
    """Nothing but an `InputError` of one line may come out; counts the case."""
    CASES[kind] += 1
    told = "nothing"
    try:
        yield
    except InputError as error:
        told = str(error)
    assert told.strip()
    assert "\n" not in told


changes = st.lists(
    st.tuples(st.sampled_from("cidsx"), st.floats(0, 1), st.integers(0, 255), st.integers(1, 64)),
    min_size=1,
    max_size=6,
)


def damage(content, steps):
    """A file's bytes after some accidents."""
    content = bytearray(content)
    for kind, where, value, length in steps:
        at = int(where * len(content))
        if kind == "c":  # the rest is lost
            del content[max(at, 1) :]
        elif kind == "i":
            content[at:at] = bytes([value]) * length
        elif kind == "d":
            del content[at : at + length]
        elif kind == "s":
            content[at : at + length] = content[at : at + length][::-1]
        elif content:
            content[min(at, len(content) - 1)] ^= value or 1
    return bytes(content)


# Pictures and labels


def encoded(picture, form, **options):
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def samples():
    """Valid pictures of many kinds: (suffix, content)."""
    random = np.random.default_rng(0)
    rgb = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    text = PngImagePlugin.PngInfo()
    text.add_text("note", "x" * 500, zip=True)
    return [
        (".png", encoded(rgb, "PNG", pnginfo=text)),
        (".png", encoded(rgb.convert("P"), "PNG")),
        (".png", encoded(rgb.convert("RGBA"), "PNG")),
        (".png", encoded(rgb.convert("LA"), "PNG")),
        (".png", encoded(rgb.convert("1"), "PNG")),
        (".png", encoded(Image.fromarray(random.integers(0, 65536, (9, 9), np.uint16)), "PNG")),
        (".png", encoded(Image.fromarray(random.integers(0, 12, (24, 32), np.uint8)), "PNG")),
        (".jpg", encoded(rgb, "JPEG", exif=exif)),
        (".jpg", encoded(rgb.convert("CMYK"), "JPEG")),
        (".jpg", encoded(rgb.convert("L"), "JPEG", progressive=True)),
        (".webp", encoded(rgb, "WEBP", lossless=True)),
        (".bmp", encoded(rgb, "BMP")),
        (".gif", encoded(rgb, "GIF", save_all=True, append_images=[rgb.rotate(90)])),
        (".tif", encoded(rgb, "TIFF", compression="tiff_lzw")),
    ]


PICTURES = samples()


@fuzz(700)
@given(sample=st.sampled_from(range(len(PICTURES))), steps=changes, upright=st.booleans())
def test_damaged_pictures(sample, steps, upright, tmp_path_factory):
    suffix, content = PICTURES[sample]
    path = tmp_path_factory.getbasetemp() / f"fuzz{suffix}"
    path.write_bytes(damage(content, steps))
    with refused("picture"):
        image = read_image(path, upright)
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert image.shape[2] == 3
    with refused("label"):
        label = read_label(path)
        assert label.dtype == np.uint8
        assert label.max() <= 11


@pytest.mark.parametrize("sample", range(len(PICTURES)))
def test_whole_pictures_have_a_defined_result(sample, tmp_path):
    suffix, content = PICTURES[sample]
    path = tmp_path / f"whole{suffix}"
    path.write_bytes(content)
    with Image.open(path) as picture:
        size, deep = picture.size, picture.mode.startswith("I")
    if deep:
        with pytest.raises(InputError, match="8-bit"):
            read_image(path)
    else:
        assert read_image(path).shape == (size[1], size[0], 3)


def test_a_turned_picture_is_set_upright_only_where_asked(tmp_path):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16] = 255  # the left half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned a quarter clockwise
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    assert read_image(tmp_path / "turned.jpg").shape == (16, 32, 3)
    upright = read_image(tmp_path / "turned.jpg", upright=True)
    assert upright.shape == (32, 16, 3)
    assert upright[:14].mean() > 250  # now the upper half
    assert upright[18:].mean() < 5


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 3000), (3000, 1), (4000, 3000), (0x7FFFFFFF, 0x7FFFFFFF)]
)
def test_odd_sizes_are_segmented_or_refused(size, finished, tmp_path):
    path = tmp_path / "odd.png"
    if size[0] < 10_000:
        Image.new("RGB", size, "red").save(path)
        segment_files([path], parse_classes("road, sky"), finished, tmp_path / "out", "cpu")
        with Image.open(tmp_path / "out" / "odd.png") as ids:
            assert ids.size == size
        return
    content = bytearray(encoded(Image.new("RGB", (8, 8)), "PNG"))
    content[16:24] = size[0].to_bytes(4, "big") + size[1].to_bytes(4, "big")
    content[29:33] = __import__("zlib").crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)
    with pytest.raises(InputError, match="too large"):
        segment_files([path], parse_classes("road, sky"), finished, tmp_path / "out", "cpu")
    assert not (tmp_path / "out").exists()


# Archives


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A small release, its manifest, and it as archives."""
    from conftest import write_dataset

    base = tmp_path_factory.mktemp("release")
    write_dataset(base / "CamVid", train=2, val=1, test=1, size=(16, 24))
    download.make_manifest(base / "CamVid", base / "manifest")
    archives = {}
    with zipfile.ZipFile(base / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((base / "CamVid").rglob("*.png")):
            archive.write(path, path.relative_to(base))
    for name, mode in (("all.tar", "w"), ("all.tar.gz", "w:gz")):
        with tarfile.open(base / name, mode) as archive:
            archive.add(base / "CamVid", "CamVid")
    for name in ("all.zip", "all.tar", "all.tar.gz"):
        archives[name] = (base / name).read_bytes()
    return base / "manifest", archives


def listing(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@fuzz(300)
@given(name=st.sampled_from(["all.zip", "all.tar", "all.tar.gz"]), steps=changes)
def test_damaged_archives_write_nothing_outside(name, steps, release, tmp_path_factory):
    manifest, archives = release
    parent = tmp_path_factory.mktemp("archive")
    (parent / name).write_bytes(damage(archives[name], steps))
    before = listing(parent)
    with refused("archive"):
        download.fetch(parent / "dest", source=parent / name, manifest=manifest)
    wanted = read_manifest(manifest)
    for path in listing(parent).keys() - before.keys():
        inside = path.relative_to(parent / "dest")  # raises where it is not
        key = f"{inside.parent}/{inside.stem}"
        assert key in wanted or inside.name == "dataset.json", inside


names = st.one_of(
    st.sampled_from(
        [
            "../../evil.png",
            "/tmp/evil.png",
            "CamVid/train/../../../evil.png",
            "C:\\evil.png",
            "..\\evil.png",
            "CamVid/train/train_000.png",
            "CamVid/trainannot/train_000.png",
            "CamVid/train/\x00evil.png",
            "train/train_001.png/x",
        ]
    ),
    st.text(min_size=1, max_size=40),
)


@fuzz(150)
@given(entries=st.lists(st.tuples(names, st.binary(max_size=60)), max_size=5), as_zip=st.booleans())
def test_archives_with_hostile_names_write_nothing_outside(
    entries, as_zip, release, tmp_path_factory
):
    manifest, _ = release
    parent = tmp_path_factory.mktemp("hostile")
    source = parent / "hostile"
    with contextlib.suppress(ValueError, UnicodeEncodeError, OSError):
        if as_zip:
            with zipfile.ZipFile(source, "w") as archive, contextlib.suppress(UserWarning):
                for name, content in entries:
                    archive.writestr(zipfile.ZipInfo(name), content)
        else:
            with tarfile.open(source, "w") as archive:
                for index, (name, content) in enumerate(entries):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    info.type = (tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE)[index % 3]
                    info.linkname = "/etc/passwd"
                    archive.addfile(info, io.BytesIO(content))
    before = listing(parent)
    with refused("archive"):
        download.fetch(parent / "dest", source=source, manifest=manifest)
    for path in listing(parent).keys() - before.keys():
        assert (parent / "dest") in path.parents
    assert not Path("/tmp/evil.png").exists()


# Checkpoints


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "good.pt"
    state = {"settings": {"name": "x"}, "model": {"w": torch.rand(40)}, "epoch": 1, "history": []}
    save_checkpoint(path, state)
    return path.read_bytes()


@fuzz(400)
@given(steps=changes)
def test_damaged_checkpoints(steps, saved, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "fuzz.pt"
    path.write_bytes(damage(saved, steps))
    with refused("checkpoint"):
        state = load_checkpoint(path)
        assert isinstance(state["settings"], dict)


class Runs:
    """Unpickled carelessly, it would call `function`."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("place", ["whole", "settings", "model", "key", "deep"])
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("kind", ["open", "exec", "system"])
def test_code_in_a_checkpoint_is_not_run(kind, form, place, tmp_path):
    touched = tmp_path / "touched"
    harm = {
        "open": Runs(open, str(touched), "w"),
        "exec": Runs(exec, f"open({str(touched)!r}, 'w')"),
        "system": Runs(__import__("os").system, f"touch '{touched}'"),
    }[kind]
    state = {"settings": {}, "model": {}, "epoch": 1}
    if place == "whole":
        state = harm
    elif place == "deep":
        state["model"] = {"a": [{"b": (1, harm)}]}
    else:
        state[place] = harm
    path = tmp_path / "crafted.pt"
    if form == "pickle":
        path.write_bytes(pickle.dumps(state))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(InputError, match=r"crafted\.pt"):
            load_checkpoint(path)
    assert not caught  # one line, and no warning beside it
    assert not touched.exists()
    CASES["checkpoint"] += 1


def test_the_sentinel_would_notice(tmp_path):
    """The crafted file does run its code in a loader that allows it."""
    torch.save(Runs(open, str(tmp_path / "touched"), "w"), tmp_path / "crafted.pt")
    torch.load(tmp_path / "crafted.pt", weights_only=False).close()
    assert (tmp_path / "touched").exists()


# JSON, phrases, settings, banks

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["experiment", "settings", "miou", "iou", "car", ""])
            | st.text(max_size=8),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@fuzz(300)
@given(value=values)
def test_any_json(value, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    with refused("json"):
        assert isinstance(read_results(path)["settings"], dict)
    with refused("json"):
        phrases = class_phrases(str(path))
        assert all(isinstance(p, str) and p for group in phrases.values() for p in group)


# What a hand or a script might leave in a results.json.
odd = st.sampled_from(
    [
        *[None, True, -1, 2.5, 10**400, float("nan"), float("inf"), 1e300, "", "text", "\ud800"],
        *[r"$\frac{$", "<script>", [], [1], [[]], {}, {"a": 1}, [{"epoch": 1}], "a\nb", "../.."],
    ]
)


def places(value, path=()):
    """The path of everything within a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, entry in inner if isinstance(value, (dict, list)) else ():
        yield (*path, key)
        yield from places(entry, (*path, key)) if isinstance(entry, (dict, list)) else ()


def changed(results, path, value):
    """A copy with another value at a path."""
    copy = json.loads(json.dumps(results))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return copy


def shown_everywhere(folder):
    """All that is made of a run's results."""
    results = read_results(folder / "results.json")
    with contextlib.suppress(InputError):
        restore(results["settings"])
    assert report_runs([folder]).stat().st_size > 1000


@pytest.mark.slow
@fuzz(60)
@given(data=st.data())
def test_changed_results_are_shown_or_refused(data, finished, tmp_path_factory):
    results = json.loads((finished / "results.json").read_text())
    results["confusion"] = results["confusion"][:2]
    path = data.draw(st.sampled_from(list(places(results))))
    folder = tmp_path_factory.getbasetemp() / "changed" / "run"
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(changed(results, path, data.draw(odd)))
    (folder / "results.json").write_text(text, encoding="utf-8")
    with refused("json"):
        shown_everywhere(folder)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("thesis", "iou"), 1.5),
        (("thesis",), None),
        (("history",), [1.0]),
        (("history", 0, "loss"), [1]),
        (("history", 0, "epoch"), "one"),
        (("miou",), 10**400),
        (("iou", "car"), "much"),
        (("data", "size"), 4),
        (("settings", "lr"), [1]),
        (("versions", "torch"), "\ud800"),
        (("confusion",), [[1], [1, 2]]),
    ],
)
def test_results_that_no_run_writes_are_refused(path, value, finished, tmp_path):
    results = json.loads((finished / "results.json").read_text())
    (tmp_path / "results.json").write_text(json.dumps(changed(results, path, value)))
    with pytest.raises(InputError, match=rf"no result of a run \({path[0]}\)"):
        read_results(tmp_path / "results.json")


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("encoder", [], "a text is expected"),
        ("train_encoder", "yes", "true or false"),
        ("text_bank", 1.5, "a text is expected"),
        ("epochs", 1.5, "whole number"),
        ("width", -1, "between"),
        ("name", "nothing", "no such experiment"),
        ("new", 1, "another version"),
    ],
)
def test_settings_that_no_run_writes_are_refused(key, value, told):
    entry = configure("frozen-names", "smoke")
    assert restore(entry.settings()) == entry
    with pytest.raises(InputError, match=told):
        restore({**entry.settings(), key: value})


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe", b"[" * 100_000, b'{"a": NaN', b"1e999999", b'{"settings": 1}', b"null"],
)
def test_odd_json(content, tmp_path):
    path = tmp_path / "odd.json"
    path.write_bytes(content)
    for read in (read_results, lambda path: class_phrases(str(path))):
        with pytest.raises(InputError, match=r"odd\.json"):
            read(path)


@fuzz(300)
@given(
    text=st.text(max_size=60) | st.from_regex(r"([a-z$<>_\\|,{} ]{0,9}[,|]){0,6}", fullmatch=True)
)
def test_any_phrases(text):
    for read in (parse_classes, read_phrases):
        with refused("phrase"):
            found = read(text)
            assert found
            assert all(p.strip() for group in found.values() for p in group)


@fuzz(60)
@given(phrase=st.text(min_size=1, max_size=200).filter(str.strip))
def test_any_phrase_is_embedded_or_refused(phrase, tiny_text):
    with refused("phrase"):
        vector = embed_classes({"it": [" ".join(phrase.split())]}, tiny_text)
        assert vector.isfinite().all()
        assert vector.norm() == pytest.approx(1, abs=1e-5)


@pytest.fixture(scope="module")
def tiny_text(tmp_path_factory):
    return CLIPText("camvid-tiny", cache=tmp_path_factory.mktemp("text"))


@fuzz(300)
@given(
    name=st.sampled_from(sorted(EXPERIMENTS)),
    profile=st.sampled_from(PROFILES),
    key=st.sampled_from([*Experiment.__dataclass_fields__, "epoch", ""]),
    value=st.text(max_size=12)
    | st.sampled_from(["nan", "inf", "-1", "1e400", "0", "1_0", "٣", "True"]),
)
def test_any_setting(name, profile, key, value):
    with refused("setting"):
        assert isinstance(configure(name, profile, {key: value}), Experiment)


@fuzz(150)
@given(steps=changes)
def test_damaged_banks_and_figures(steps, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()
    bank, figures = folder / "bank.npz", folder / "figures.npz"
    np.savez(bank, phrases=np.array(["car", "tree"]), embeddings=np.eye(2, 8, dtype=np.float32))
    picture = np.zeros((1, 3, 4, 4), np.uint8)
    write_figures(figures, FigureData(picture, picture[:, 0], picture[:, 0], ("a",), {}))
    for path in (bank, figures):
        path.write_bytes(damage(path.read_bytes(), steps))
    with refused("bank"):
        assert PhraseFile(bank).encode(["car"]).shape[0] == 1
    CASES["figures"] += 1
    assert read_figures(figures) is None or isinstance(read_figures(figures), FigureData)


def test_figures_that_do_not_fit_together_are_left_out(tmp_path):
    picture, matrix = np.zeros((2, 3, 4, 4), np.uint8), np.eye(11)
    maps = picture[:, 0]
    good = FigureData(picture, maps, maps, ("a", "b"), {"Names": matrix})
    write_figures(tmp_path / "f.npz", good)
    assert read_figures(tmp_path / "f.npz").names == ("a", "b")
    for harm in (
        {"images": picture[:1]},
        {"images": picture.astype(complex)},
        {"labels": maps[:, :3]},
        {"labels": maps + 12},
        {"predictions": picture},
        {"names": ("a",)},
        {"similarities": {"Names": np.float64(1)}},
        {"similarities": {"Names": matrix[:3]}},
    ):
        write_figures(tmp_path / "f.npz", dataclasses.replace(good, **harm))
        assert read_figures(tmp_path / "f.npz") is None


def test_phrases_that_cancel_are_refused(tmp_path):
    vectors = np.array([[1, 0], [-1, 0], [0, 1]], dtype=np.float32)
    np.savez(tmp_path / "bank.npz", phrases=np.array(["car", "van", "tree"]), embeddings=vectors)
    source = PhraseFile(tmp_path / "bank.npz")
    with pytest.raises(InputError, match="class 'car': its phrases' vectors cancel"):
        embed_classes({"tree": ["tree"], "car": ["car", "van"]}, source)


# Through the command line


@pytest.mark.parametrize("name", ["a b", "a\u00a0b\u202f", "a\tb", "a\nb", "b\udcff"])
def test_a_run_on_data_of_any_name_can_be_read_back(name, make_dataset, tmp_path, capsys):
    data = make_dataset(name)
    command = ["run", "bilinear-names", "--profile", "smoke", "--data", str(data)]
    for told in ("mIoU", "finished before"):
        assert main([*command, "--out", str(tmp_path / "out")]) == 0
        assert told in capsys.readouterr().out
    stored = read_results(tmp_path / "out" / "results.json")["data"]["name"]
    assert stored.encode()
    assert "\n" not in stored


def test_a_file_of_a_name_that_cannot_be_printed_is_one_line(finished, tiny_dataset, capsys):
    for folder in ("test", "testannot"):
        frame = next((tiny_dataset / folder).iterdir())
        frame.rename(frame.with_name("b\udcff.png"))
    command = ["run", "bilinear-names", "--profile", "smoke", "--out", str(tiny_dataset / "out")]
    capsys.readouterr()
    assert main([*command, "--data", str(tiny_dataset)]) == 1
    assert r"test/'b\udcff.png': a name that cannot be printed" in capsys.readouterr().err
    assert main([*command, "--data", str(tiny_dataset), "--set", "weights=a\udcff"]) == 1
    assert "cannot be printed" in capsys.readouterr().err


def test_frames_smaller_than_the_encoders_need_are_one_line(make_dataset, tmp_path, capsys):
    data = make_dataset(size=(24, 128))
    for name in ("bilinear-names", "frozen-names", "swiftnet"):
        command = ["run", name, "--profile", "smoke", "--data", str(data)]
        assert main([*command, "--out", str(tmp_path / "out")]) == 1
        told = capsys.readouterr().err.strip()
        assert told.endswith("frames of 128x24: the encoders need 32 pixels a side")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished smoke run of a language model."""
    from conftest import write_dataset

    base = tmp_path_factory.mktemp("finished")
    write_dataset(base / "data")
    run(configure("frozen-names", "smoke"), base / "data", base / "run", "cpu")
    return base / "run"


@pytest.mark.parametrize(
    "words",
    [
        "<script>alert(1)</script>, road",
        "$x$, $\\frac{",
        "_hidden, {brace}, %s",
        "a\tb\x07, c",
        "路, 🚗",
    ],
)
def test_words_are_drawn_as_they_stand(words, finished, tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "street.png")
    arguments = ["--classes", words, "--run", str(finished), "--out", str(tmp_path / "out")]
    assert main(["segment", str(tmp_path / "street.png"), *arguments]) == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "street.png",
        "street_overlay.png",
    ]


@pytest.mark.parametrize("words", ["", " , ", "car,,tree", "car, car", "word " * 3000, "b\udcff"])
def test_bad_words_are_one_line(words, finished, tmp_path, capsys):
    Image.new("RGB", (40, 30)).save(tmp_path / "street.png")
    arguments = ["--classes", words, "--run", str(finished), "--out", str(tmp_path / "out")]
    capsys.readouterr()
    assert main(["segment", str(tmp_path / "street.png"), *arguments]) == 1
    told = capsys.readouterr().err.strip()
    assert told.startswith("error: ")
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize("content", [b"", b"not a picture", PICTURES[0][1][:60], PICTURES[5][1]])
def test_bad_pictures_are_one_line(content, finished, tmp_path, capsys):
    (tmp_path / "street.png").write_bytes(content)
    arguments = ["--classes", "road", "--run", str(finished), "--out", str(tmp_path / "out")]
    capsys.readouterr()
    assert main(["segment", str(tmp_path / "street.png"), *arguments]) == 1
    told = capsys.readouterr().err.strip()
    assert told.startswith("error: ")
    assert "street.png" in told
    assert len(told.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_enough_cases_were_tried(request):
    """Last in the file; holds where all of it ran."""
    if len([item for item in request.session.items if item.path == request.path]) < 60:
        pytest.skip("only a part of this file was selected")
    assert sum(CASES.values()) >= LEAST, CASES
    assert {"picture", "label", "archive", "checkpoint", "phrase"} <= CASES.keys()
