"""Values of label files: ids, grey palettes and colours are read as what they mean, or refused."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from camvid_lang.data import labels
from camvid_lang.data.classes import GROUPS, ORIGINAL_COLOURS, PALETTE, VOID
from camvid_lang.data.labels import LabelIds
from camvid_lang.errors import InputError

ALL = (np.arange(48, dtype=np.uint8) % 12).reshape(6, 8)
COLOURS = np.array(PALETTE, dtype=np.uint8)
VOC = [(i % 2 * 128, i // 2 % 2 * 128, i // 4 * 128) for i in range(8)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "label.png"


def save(path, values, mode=None, **options):
    Image.fromarray(values).convert(mode).save(path, **options)
    return path


def save_palette(path, indices, palette, **options):
    image = Image.fromarray(np.array(indices, dtype=np.uint8)).convert("P")
    image.putdata(np.array(indices).flatten().tolist())
    image.putpalette(np.array(palette, dtype=np.uint8).flatten().tolist())
    image.save(path, **options)
    return path


def read_label(path, *counted, **options):
    return labels.read_label(path, LabelIds(*counted, **options).check())[0]


def refused(path, message, **options):
    with pytest.raises(InputError, match=message) as caught:
        read_label(path, **options)
    assert str(path) in str(caught.value)


# Grey


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32])
def test_grey_values_are_ids_and_255_is_void(path, kind):
    image = Image.fromarray(np.where(ALL == 4, 255, ALL).astype(kind))
    image.save(path, "TIFF" if kind == np.int32 else "PNG")
    label = read_label(path)
    assert label.dtype == np.uint8
    assert np.array_equal(label, np.where(ALL == 4, VOID, ALL))


@pytest.mark.parametrize("mode", ["P", "RGB", "RGBA", "LA"])
def test_grey_is_grey_in_every_mode(path, mode):
    for values in (ALL, ALL[:, :1] * 0 + 7, np.where(ALL == 2, 255, ALL), ALL % 2):
        expected = np.where(values == 255, VOID, values)
        assert np.array_equal(read_label(save(path, values, mode)), expected)


def test_values_of_a_grey_palette_count_not_indices(path):
    indices = [[0, 1], [1, 2]]
    for palette, expected in (
        ([0, 0, 0, 3, 3, 3, 8, 8, 8], [[0, 3], [3, 8]]),
        ([8, 8, 8, 0, 0, 0, 255, 255, 255], [[8, 0], [0, VOID]]),
        ([1, 1, 1, 2, 2, 2, 3, 3, 3, 200, 10, 10], [[1, 2], [2, 3]]),
    ):
        assert read_label(save_palette(path, indices, palette)).tolist() == expected
    identity = np.arange(256).repeat(3)
    assert not read_label(save_palette(path, ALL * 0, identity)).any()
    refused(save_palette(path, indices, [0, 0, 0, 1, 1, 1, 77, 77, 77]), "id 77 is not in 0..11")


@pytest.mark.parametrize(
    ("void", "first", "values"), [(0, 1, [0, 1, 11]), (None, 1, [12, 1, 11]), (99, 5, [99, 5, 15])]
)
def test_ids_can_be_counted_from_any_number(path, void, first, values):
    save(path, np.array([[*values, 255]], dtype=np.uint8))
    assert read_label(path, void, first).tolist() == [[VOID, 0, 10, VOID]]
    save(path, np.array([[first + 13]], dtype=np.uint8))
    refused(path, f"id {first + 13} is not in {first}..", void=void, first_id=first)


def test_ids_that_look_counted_from_one_are_named_with_the_option(path):
    save(path, np.arange(1, 13, dtype=np.uint8)[None])
    refused(path, r"id 12 is not in 0..11 \(void is 11; found 1..12\); .* give --first-id 1, and")
    save(path, np.arange(13, dtype=np.uint8)[None])
    refused(path, r"--void 0 where 0 is void \(in dataset.json: first_id 1, void 0\)")
    refused(path, r"id 0 is not in 1..12 .* --void 0 ", first_id=1)
    save(path, np.array([[3, 31, 40]], dtype=np.uint8))
    refused(
        path, r"ids 31, 40 are not in 0..11 .*; convert the labels with `camvid-lang data convert`"
    )


# Colours


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colours_of_the_package_are_ids(path, mode):
    assert np.array_equal(read_label(save(path, COLOURS[ALL], mode)), ALL)
    for ids in ([[0, VOID]], [[0, 0]], [[VOID, 3]]):  # grey and black; grey; black and another
        assert read_label(save(path, COLOURS[ids], mode)).tolist() == ids


def test_palettes_of_colours_are_ids_in_any_order(path):
    order = np.random.default_rng(0).permutation(12)
    assert np.array_equal(read_label(save_palette(path, ALL, COLOURS[order])), order[ALL])
    black = list(order).index(VOID)
    assert (read_label(save_palette(path, ALL * 0 + black, COLOURS[order])) == VOID).all()
    assert read_label(save_palette(path, [[0, 1]], [0, 0, 0, 128, 128, 128])).tolist() == [
        [VOID, 0]
    ]


def test_the_32_original_colours_and_those_of_segnet_are_grouped(path):
    names = [*ORIGINAL_COLOURS]
    save(path, np.array([list(ORIGINAL_COLOURS.values())], dtype=np.uint8))
    groups = list(GROUPS.values())
    expected = [next((i for i, g in enumerate(groups) if name in g), VOID) for name in names]
    assert read_label(path).tolist() == [expected]
    save(path, np.array([[[60, 40, 222], [255, 69, 0]]], dtype=np.uint8))
    assert read_label(path).tolist() == [[4, 3]]


def test_unknown_colours_are_named_or_counted_as_void(path):
    colours = COLOURS[ALL]
    colours[2, 3:5] = (1, 2, 3)
    save(path, colours)
    refused(
        path, r"colour \(1, 2, 3\) at row 2, column 3 is not .*\(2 such pixels\).*--unknown-void"
    )
    expected = ALL.copy()
    expected[2, 3:5] = VOID
    options = LabelIds(unknown_void=True)
    ids, unknown = labels.read_label(path, options)
    assert np.array_equal(ids, expected)
    assert unknown == 2
    palette = [*COLOURS.tolist(), (1, 2, 3)]
    save_palette(path, np.where(expected == ALL, ALL, 12), palette)
    refused(path, r"palette with \(1, 2, 3\)")
    ids, unknown = labels.read_label(path, options)
    assert np.array_equal(ids, expected)
    assert unknown == 2
    save_palette(path, ALL, palette)  # the colour is not used
    refused(path, r"palette with \(1, 2, 3\)")
    assert np.array_equal(read_label(path, unknown_void=True), ALL)
    save(path, colours[2:3, 3:5])
    refused(path, r"\(1, 2, 3\)", unknown_void=True)  # nothing is known


# Refused


def test_palettes_of_other_data_sets_are_refused(path):
    for indices in ([[0, 1], [1, 3]], [[0, 2]], [[0, 7]], [[0, 0]]):
        save_palette(path, indices, VOC)
        for more in ({}, {"unknown_void": True}):
            refused(path, "if the indices are ids, save the ids as a grey image", **more)
    Image.fromarray(COLOURS[ALL]).convert("P").save(path)  # the web palette: nearest colours
    refused(path, "is not one of CamVid's|not one of CamVid's")


def test_an_index_outside_the_palette_is_refused(path):
    save_palette(path, [[0, 1], [1, 2]], [0, 0, 0, 3, 3, 3, 8, 8, 8])
    content = path.read_bytes()
    start, end = content.index(b"IDAT"), content.index(b"IEND") - 8
    chunk = b"IDAT" + zlib.compress(b"\0\x10\0\x70")  # two bits each: 0, 1 and 1, 3
    size = struct.pack(">I", len(chunk) - 4)
    crc = struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(content[: start - 4] + size + chunk + crc + content[end + 4 :])
    refused(path, "not in the palette")


def test_black_alone_is_refused_where_it_can_be_two_things(path):
    assert not read_label(save(path, ALL * 0)).any()
    assert not read_label(save(path, ALL * 0, "LA")).any()
    refused(save(path, ALL * 0, "RGB"), "black alone")
    refused(save_palette(path, ALL * 0, [0, 0, 0]), "black alone")


def test_what_has_no_id_is_refused(path):
    rgba = np.dstack([COLOURS[ALL], np.full_like(ALL, 255)])
    rgba[1, 1, 3] = 254
    refused(save(path, rgba), "transparent")
    refused(save(path, rgba[..., 2:]), "transparent")
    refused(save_palette(path, ALL, COLOURS, transparency=11), "transparent")
    refused(save(path, ALL % 2 * 255, "1"), "image mode 1")
    # 16 bits per channel, which Pillow reads but does not write.
    rows = b"".join(b"\0" + struct.pack(">2H", 3, 65535) for _ in range(2))
    chunks = [(b"IHDR", struct.pack(">2I5B", 1, 2, 16, 4, 0, 0, 0)), (b"IDAT", zlib.compress(rows))]
    content = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in [*chunks, (b"IEND", b"")]
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    refused(path, "16 bits per channel")
