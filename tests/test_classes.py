"""The classes: ids, texts, colours."""

import open_clip

from camvid_lang.data.classes import CLASSES, DESCRIPTIONS, PALETTE, VOID


def test_ids_and_colours_are_those_of_the_release():
    assert [CLASSES.index(name) for name in ("sky", "sign", "bicyclist")] == [0, 6, 10]
    assert len(CLASSES) == VOID == 11
    assert len(set(PALETTE)) == 12
    assert PALETTE[VOID] == (0, 0, 0)


def test_descriptions_are_two_sentences_within_clips_context():
    tokenizer = open_clip.get_tokenizer("ViT-B-32-quickgelu")
    assert tuple(DESCRIPTIONS) == CLASSES
    for name, text in DESCRIPTIONS.items():
        assert text.count(". ") + text.endswith(".") == 2, name
        assert not tokenizer([text], context_length=200)[0, 77:].any(), name
