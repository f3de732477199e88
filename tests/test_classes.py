"""The classes: names, texts and colours, and the grouping of the original 32."""

import open_clip

from camvid_lang.data.classes import CLASSES, DESCRIPTIONS, GROUPS, ORIGINAL_COLOURS, PALETTE, VOID


def test_ids_are_those_of_the_release():
    assert [CLASSES.index(name) for name in ("sky", "sign", "bicyclist")] == [0, 6, 10]
    assert len(CLASSES) == VOID == 11


def test_each_original_class_is_in_one_group():
    grouped = [member for members in GROUPS.values() for member in members]
    assert len(ORIGINAL_COLOURS) == len(set(ORIGINAL_COLOURS.values())) == 32
    assert tuple(GROUPS) == CLASSES
    assert len(grouped) == len(set(grouped))
    assert set(ORIGINAL_COLOURS) - set(grouped) == {"Void"}
    assert len(set(PALETTE)) == 12
    assert PALETTE[VOID] == (0, 0, 0)


def test_descriptions_are_two_sentences_within_clips_context():
    tokenizer = open_clip.get_tokenizer("ViT-B-32-quickgelu")
    assert tuple(DESCRIPTIONS) == CLASSES
    for name, text in DESCRIPTIONS.items():
        assert text.count(". ") + text.endswith(".") == 2, name
        assert not tokenizer([text], context_length=200)[0, 77:].any(), name
