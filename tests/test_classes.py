"""The classes: names, texts and colours, and the grouping of the original 32."""

import numpy as np
import open_clip
import pytest
from hypothesis import given
from hypothesis import strategies as st

from camvid_lang.data.classes import CLASSES, DESCRIPTIONS, GROUPS, ORIGINAL_COLOURS, PALETTE, VOID
from camvid_lang.data.convert import group_labels
from camvid_lang.errors import InputError


def test_ids_are_those_of_the_release() -> None:
    assert [CLASSES.index(name) for name in ("sky", "sign", "bicyclist")] == [0, 6, 10]
    assert len(CLASSES) == VOID == 11


def test_each_original_class_is_in_one_group() -> None:
    grouped = [member for members in GROUPS.values() for member in members]
    assert len(ORIGINAL_COLOURS) == len(set(ORIGINAL_COLOURS.values())) == 32
    assert tuple(GROUPS) == CLASSES
    assert len(grouped) == len(set(grouped))
    assert set(ORIGINAL_COLOURS) - set(grouped) == {"Void"}
    assert len(set(PALETTE)) == 12
    assert PALETTE[VOID] == (0, 0, 0)


def test_descriptions_are_two_sentences_within_clips_context() -> None:
    tokenizer = open_clip.get_tokenizer("ViT-B-32-quickgelu")
    assert tuple(DESCRIPTIONS) == CLASSES
    for name, text in DESCRIPTIONS.items():
        assert text.count(". ") + text.endswith(".") == 2, name
        assert not tokenizer([text], context_length=200)[0, 77:].any(), name


@given(st.lists(st.sampled_from(sorted(ORIGINAL_COLOURS)), min_size=1, max_size=40))
def test_original_colours_are_grouped(names: list[str]) -> None:
    ids = group_labels(np.array([[ORIGINAL_COLOURS[name] for name in names]], dtype=np.uint8))
    assert (ids.shape, ids.dtype) == ((1, len(names)), np.uint8)
    for name, value in zip(names, ids[0], strict=True):
        groups = [CLASSES.index(group) for group, members in GROUPS.items() if name in members]
        assert [int(value)] == (groups or [VOID])


@pytest.mark.parametrize("colour", [(1, 2, 3), (255, 255, 255), (0, 0, 1)])
def test_an_unknown_colour_is_named(colour: tuple[int, int, int]) -> None:
    rgb = np.zeros((5, 7, 3), np.uint8)
    rgb[2, 4] = colour
    message = rf"\({colour[0]}, {colour[1]}, {colour[2]}\) at row 2, column 4"
    with pytest.raises(InputError, match=message):
        group_labels(rgb)
    with pytest.raises(InputError, match="is needed"):
        group_labels(rgb[..., 0])
