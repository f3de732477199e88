"""Id maps: grey PNGs of 8 bits are read as their values say, everything else is refused."""

import contextlib
import re
import struct
import zlib

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageFile, PngImagePlugin

from camvid_lang.data.camvid import read_image
from camvid_lang.data.classes import CLASSES, SHARES, VOID
from camvid_lang.data.labels import (
    CLASSES_KEY,
    CONVERT,
    LabelIds,
    read_dataset_info,
    read_label,
    shift_hint,
)
from camvid_lang.errors import InputError
from camvid_lang.segmenter import Segmentation, read_rgb

ALL = (np.arange(187) % 12).reshape(11, 17).astype(np.uint8)
OTHERS = "was segmented into other classes, but another tool removed their names or bits; segment"
NAMES = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGBA"}


def png(values, depth=8, kind=0, before=(), after=()):
    """A PNG of (H, W) or (H, W, channels) samples, also of kinds that Pillow cannot write."""
    bits = values[..., None] >> np.arange(depth)[::-1] & 1
    rows = np.packbits(bits.reshape(len(values), -1).astype(np.uint8), axis=1)
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">2I5B", *values.shape[1::-1], depth, kind, 0, 0, 0)
    palette = [(b"PLTE", bytes(i % 256 for i in range(3 * 2**depth)))] if kind == 3 else []
    chunks = [(b"IHDR", header), *palette, *before, (b"IDAT", body), *after, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "label.png"


def refused(path, content, ids=LabelIds()):  # noqa: B008
    """The message for a file with this content, without the path that it starts with."""
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_label(path, ids)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value).removeprefix(f"{path}: ")


@given(st.integers(0, 244), st.integers(0, 255), st.integers(0, 254))
@example(1, 0, 13)
@example(244, 255, 0)
def test_values_count_from_first_id_and_255_is_void(tmp_path_factory, first, void, other):
    path, values = tmp_path_factory.getbasetemp() / "counted.png", ALL.astype(int) + first
    void = first + 11 if first <= void < first + 11 else void
    values[ALL == VOID] = void
    values[:, 0] = 255
    path.write_bytes(png(values))
    found = read_label(path, LabelIds(first, void))
    assert found.dtype == np.uint8
    assert np.array_equal(found, np.where(values == 255, VOID, ALL))
    if other != void and not first <= other < first + 11:
        values[5, 6] = other
        message = f"id {other} is not one of {first}..{first + 10} (void is {void}); "
        assert refused(path, png(values), LabelIds(first, void)).startswith(message)


def test_other_ids_are_listed_and_those_counted_from_one_get_a_card_that_fixes_them(path):
    message = refused(path, png(np.array([[3, 40, 31, 40, 0, *range(60, 80)]])))
    assert message.startswith("id 31, 40, 60, 61, 62, 63 is not one of 0..10 (void is 11); run scr")
    for ids, values in ((LabelIds(), ALL + 1), (LabelIds(1, 12), (ALL + 1) % 12)):
        message = refused(path, png(values), ids)
        card = re.search(r"if they count from 1, set (.*) in dataset.json", message)[1]
        path.with_name("dataset.json").write_text(f"{{{card}}}")
        assert np.array_equal(read_label(path, read_dataset_info(path.parent).ids), ALL)


@pytest.mark.parametrize(
    ("kind", "depth"), [(0, 1), (0, 4), (0, 16), (3, 2), (3, 8), (2, 8), (2, 16), (4, 8), (6, 8)]
)
def test_other_pngs_are_refused_with_a_line_that_fixes_them(path, kind, depth):
    ids = ALL % min(12, 2**depth)
    samples = ids[..., None].repeat({2: 3, 4: 2, 6: 4}.get(kind, 1), 2)
    message = refused(path, png(samples, depth, kind))
    if (kind, depth) == (0, 16):
        assert message.startswith(OTHERS)
        return
    assert message.startswith(f"a PNG of {depth}-bit {NAMES[kind]}; save the ids as an 8-bit grey ")
    assert message.endswith(CONVERT)
    fix = re.search(r"if its values are ids, (Image\.fromarray\(.*\)\.save\(path\));", message)
    assert (fix is None) == (kind != 3 and depth != 8)  # which Pillow scales or cuts
    if fix:
        exec(fix[1], {"np": np, "Image": Image, "path": path})
        assert np.array_equal(read_label(path), ids)


def test_other_formats_and_damaged_files_are_refused(path):
    expected = "not a PNG; save the ids as an 8-bit grey PNG"
    for format in ("JPEG", "BMP", "TIFF", "WEBP", "GIF"):
        Image.fromarray(ALL).save(path, format)
        assert refused(path, path.read_bytes()) == expected
    assert refused(path, b"") == refused(path, png(ALL)[:25]) == expected
    content = bytearray(png(ALL))
    content[50] ^= 1
    for damaged in (content, content[:60]):
        assert re.fullmatch(
            r"cannot be read as an image \(.+\); replace .*", refused(path, damaged)
        )


def test_files_that_name_their_classes_are_mapped_by_name_or_refused(path):
    def name(names):
        return [(b"tEXt", f"{CLASSES_KEY}\0".encode() + "\n".join(names).encode())]

    others = [(b"tRNS", b"\0\x03"), (b"sBIT", b"\4"), (b"tEXt", b"Comment\0x"), (b"teSt", b"x")]
    path.write_bytes(png(ALL, before=others))  # of which none counts
    assert np.array_equal(read_label(path), ALL)
    order = np.random.default_rng(0).permutation(11)
    for where in ("before", "after"):  # the pixels
        chunks = {where: name(CLASSES[i].title() for i in order)}
        path.write_bytes(png(ALL % 11, 16, **chunks))
        assert np.array_equal(read_label(path, LabelIds(1, 0)), order[ALL % 11])
        assert refused(path, png(ALL % 11, **chunks)).startswith(OTHERS)
        path.write_bytes(png(ALL % 11, **{where: name(CLASSES)}))
        assert np.array_equal(read_label(path, LabelIds(1, 0)), ALL % 11)
    message = refused(path, png(ALL % 2, 16, before=name(["car", "Lorry"])))
    assert message.startswith("was segmented into 'lorry', which is not a class of CamVid; segment")
    message = refused(path, png(ALL % 3, 16, before=name(["car", "road"])))
    assert message.startswith("id 2 is not one of 0..1 (void is 255)")


SEGMENTED = ["road", "car", "sky"]  # not in CamVid's order


@pytest.mark.parametrize("classes", [SEGMENTED, list(CLASSES)])
def test_what_other_tools_do_to_a_segmentation_changes_no_id(classes, path):
    ids = ALL % len(classes)
    Segmentation(np.zeros((*ids.shape, 3), np.uint8), ids, classes).save(path.with_suffix(""))
    expected = np.array([CLASSES.index(name) for name in classes])[ids]
    assert np.array_equal(read_label(path), expected)
    original, image = path.read_bytes(), Image.open(path)
    for change in (
        lambda: Image.open(path).save(path),  # loses the names
        lambda: Image.open(path).save(path, pnginfo=image_text(image), optimize=True),
        lambda: Image.fromarray(np.array(image).astype(np.uint8)).convert("P").save(path),
        lambda: Image.open(path).save(path, pnginfo=image_text(image), exif=turned(3)),
    ):
        path.write_bytes(original)
        change()
        with contextlib.suppress(InputError):
            assert np.array_equal(read_label(path), expected)


def image_text(image):
    found = PngImagePlugin.PngInfo()
    for key, value in image.text.items():
        found.add_itxt(key, value)
    return found


def turned(orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


def tiff(values):
    """An uncompressed TIFF of (H, W, 3) uint16, which Pillow does not write."""
    high, wide = values.shape[:2]
    tags = [(256, 1, wide), (257, 1, high), (258, 3, 8), (259, 1, 1), (262, 1, 2), (273, 1, 14)]
    tags += [(277, 1, 3), (278, 1, high), (279, 1, values.nbytes)]
    entries = b"".join(struct.pack("<2H2I", tag, 3, count, value) for tag, count, value in tags)
    head = struct.pack("<2sHI3H", b"II", 42, 14 + values.nbytes, 16, 16, 16)
    return head + values.tobytes() + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_frames_of_more_than_8_bits_are_refused(bits, path):
    colours = np.arange(144, dtype=np.uint16).reshape(6, 8, 3) << (bits - 8)
    clear = np.dstack([colours, colours[..., 0]])
    for content in (png(colours, 16, 2), png(clear, 16, 6), tiff(colours)):
        path.write_bytes(content)
        for read in (read_image, read_rgb):
            with pytest.raises(InputError, match=r"label\.png: 16 bits per channel, but 8 are nee"):
                read(path)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_metadata_that_turn_a_label_are_refused(orientation, path):
    Image.fromarray(ALL).save(path, exif=turned(orientation))
    assert refused(path, path.read_bytes()).startswith("metadata turn or mirror it (EXIF orient")


def test_nothing_is_read_while_pillow_accepts_damaged_files(path, monkeypatch):
    content = png(np.random.default_rng(0).integers(0, 11, (40, 50)))
    path.write_bytes(content[: len(content) // 2])
    for tolerant, message in ((False, "cannot be read as an image"), (True, "LOAD_TRUNCATED_IMA")):
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", tolerant)
        for read in (read_label, read_image, read_rgb):
            with pytest.raises(InputError, match=message):
                read(path)


@pytest.mark.parametrize("data", ["scenes", pytest.param("camvid", marks=pytest.mark.camvid)])
def test_each_shifted_label_is_found_and_no_other(data, request):
    paths = sorted(request.getfixturevalue(data).glob("*annot/*.png"))
    every = [np.bincount(read_label(path).ravel(), minlength=12) for path in paths]
    for path, counts in zip(paths, every, strict=True):
        assert shift_hint(counts) == "", path
        assert 'set "first_id": 1, "void": 0 in' in shift_hint(np.roll(counts, 1)), path
        assert "they are too low; add 1" in shift_hint(np.roll(counts, -1)), path
    segnet = np.insert(sum(every)[:11], 3, 99)  # with road marking, and bicyclists as 11
    assert "SegNet's 12 classes: subtract 1 from all above 3" in shift_hint(segnet)
    assert shift_hint(np.zeros(12)) == ""
    if data == "camvid":
        assert 100 * sum(every) / np.sum(every) == pytest.approx(SHARES, abs=0.051)
