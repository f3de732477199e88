"""Classes and their prompts, both text encoders, and the 77 tokens."""

import json
import unicodedata

import numpy as np
import open_clip
import pytest
import torch
from torch.nn import functional as F

from camvid_lang.data.classes import CLASSES, DESCRIPTIONS
from camvid_lang.data.words import class_prompts, parse_classes
from camvid_lang.errors import InputError
from camvid_lang.models.encoder import TINY, load_clip
from camvid_lang.models.text import CLIPTextEncoder, TextBank, embed

ROAD = "a wide, empty road"


def bank(path, phrases, dimension=5, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(len(phrases), dimension))
    np.savez(path, phrases=np.array(phrases), embeddings=vectors.astype(np.float32))
    return TextBank(path), F.normalize(torch.from_numpy(vectors).float(), dim=1)


def test_the_two_text_sets_name_the_eleven_classes():
    assert class_prompts("names") == {name: [name] for name in CLASSES}
    assert class_prompts("descriptions") == {name: [DESCRIPTIONS[name]] for name in CLASSES}
    with pytest.raises(InputError, match=r"text set 'name' is not names, descriptions or"):
        class_prompts("name")


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (["car", " shop  window"], {"car": 0, "shop window": 0}),
        (("car | lorry", ["a, b", "c"]), {"car": ["car", "lorry"], "a, b": ["a, b", "c"]}),
        ({"vehicle": ("car", "lorry"), "tree": "tree"}, {"vehicle": ["car", "lorry"], "tree": 0}),
        (["cafe\u0301"], {"caf\u00e9": 0}),
        (f'"{ROAD}", sky', {ROAD: 0, "sky": 0}),
        (f'\ufeff"{ROAD}"\r\nsky\r\n', {ROAD: 0, "sky": 0}),
        (f'["{ROAD}", "sky"]', {ROAD: 0, "sky": 0}),
        (f'{{"road": ["{ROAD}", "street"], "sky": "sky"}}', {"road": [ROAD, "street"], "sky": 0}),
        ('"a, b | c", d', {"a, b": ["a, b", "c"], "d": 0}),
        ("driver's cab, rock ’n’ roll", {"driver's cab": 0, "rock ’n’ roll": 0}),
        ("road.json, a.txt", {"road.json": 0, "a.txt": 0}),
        ('"a.txt"', {"a.txt": 0}),
        ('"路，车"，b', {"路，车": 0, "b": 0}),
    ],
)
def test_classes_are_lists_mappings_texts_and_files(classes, expected, tmp_path):
    expected = {name: prompts or [name] for name, prompts in expected.items()}
    assert parse_classes(classes) == expected
    if isinstance(classes, str):
        path = tmp_path / "a, b.LIST"
        path.write_text(classes, encoding="utf-8-sig")
        assert parse_classes(str(path)) == expected
        classes = path
    assert class_prompts(classes) == expected


@pytest.mark.parametrize(
    "bad",
    [
        *([], {}, [""], ["car |", "tree"], ["car", "car"], {"a": []}, {"a": [3]}),
        *({"a": {"b": "c"}}, [None], [[]], [[3]], "", " , ", "\n", "car|,tree", "|", "car, car"),
        *("['a', 'b']", "[]", '{"car": "a", "car": "b"}', '["car",]', '{"a": NaN'),
        *('{"a": 1e999999}', "[" * 100_000 + "]" * 100_000),
    ],
    ids=lambda bad: repr(bad)[:20],
)
def test_unusable_classes_are_refused_also_in_a_file(bad, tmp_path):
    path = tmp_path / "set.json"
    path.write_text(bad if isinstance(bad, str) else json.dumps(bad))
    with pytest.raises(InputError, match="class"):
        parse_classes(bad)
    for read in (class_prompts, parse_classes):
        with pytest.raises(InputError, match=r"set\.json.*class"):
            read(str(path))


@pytest.mark.parametrize("separator", [",", ", ", "\n", "\r\n", ",\n", "\n\n", "，", "、", " ،"])
def test_classes_are_separated_by_commas_or_lines(separator):
    text = separator.join(["car | lorry", '"sign, round" ', "shop  window", "路"]) + separator
    expected = {"car": ["car", "lorry"], "sign, round": ["sign, round"]}
    assert parse_classes(text) == {**expected, "shop window": ["shop window"], "路": ["路"]}


@pytest.mark.parametrize(
    "text",
    [
        *(f"{mark}, sky" for mark in (f"“{ROAD}”", f"„{ROAD}“", f"«{ROAD}»", f"‘{ROAD}’")),
        *(f"sky\n'{ROAD}'", "`road`, sky", "road | “street”", '"car, tree', '"car\ntree"'),
        *('"a" b', '"a, b" | c', 'a "b" c', '12" wheel', '"a ""b"""'),
    ],
)
def test_other_quotes_and_unclosed_ones_are_refused_with_a_hint(text):
    with pytest.raises(InputError, match="quote a whole class with straight quotes"):
        parse_classes(text)


def test_a_file_of_classes_that_is_missing_or_not_utf8_is_no_class(tmp_path):
    for name in ("a.txt", "words.json", "no such/words.TXT"):
        with pytest.raises(InputError, match=rf"{name} is .*(missing|No such file)"):
            parse_classes(name)
    (tmp_path / "latin.json").write_bytes('["pavé"]'.encode("latin-1"))
    with pytest.raises(InputError, match=r"latin\.json is not a readable UTF-8 file"):
        parse_classes(tmp_path / "latin.json")


@pytest.mark.parametrize(
    "classes",
    [
        *(["Car", "car"], "Straße, STRAßE", ["caf\u00e9", "cafe\u0301"]),
        *(["shop window", "shop  window"], {"a": ["car", "lorry"], "b": ["Lorry", "car"]}),
    ],
)
def test_what_clip_cannot_tell_apart_is_one_class(classes):
    with pytest.raises(InputError, match=r"is given twice, as .*case and spaces"):
        parse_classes(classes)


def test_a_class_is_the_normalised_mean_of_its_prompts(tmp_path):
    encoder, vectors = bank(tmp_path / "bank.npz", ["a/car", "b/car", "lorry", "tree"])
    made = embed({"vehicle": ["car", "lorry"], "tree": ["tree"]}, encoder)
    car = F.normalize(vectors[:2].mean(dim=0), dim=0)
    vehicle = F.normalize((car + vectors[2]) / 2, dim=0)
    torch.testing.assert_close(made.vectors, torch.stack([vehicle, vectors[3]]))
    assert (made.names, made.prompts) == (("vehicle", "tree"), (("car", "lorry"), ("tree",)))
    torch.testing.assert_close(encoder.encode(["b/car"])[0], vectors[1])
    np.savez(tmp_path / "bank.npz", phrases=["car", "van"], embeddings=[[1.0, 0.0], [-1.0, 0.0]])
    with pytest.raises(InputError, match="class 'car': the embeddings of its prompts cancel"):
        embed({"car": ["car", "van"]}, TextBank(tmp_path / "bank.npz"))


def test_a_bank_is_searched_by_alias_and_in_both_unicode_forms(tmp_path):
    composed, apart = (unicodedata.normalize(form, "rue pavée") for form in ("NFC", "NFD"))
    phrases = ["c/sidewalk", "c/vegetation", "d/tree-other", apart]
    encoder, vectors = bank(tmp_path / "bank.npz", phrases)
    found = encoder.encode(["pavement", "tree", "Tree_Other", composed, apart])
    torch.testing.assert_close(found, vectors[[0, 1, 2, 3, 3]])
    with pytest.raises(InputError, match=r"'sidewalks': did you mean .*sidewalk"):
        encoder.encode(["sidewalks"])


def test_banks_that_cannot_be_used_are_refused(tmp_path):
    one = np.array(["a"])
    for name, arrays in {
        "lacks": {"phrases": one},
        "shape": {"phrases": np.array(["a", "b"]), "embeddings": np.ones((3, 2))},
        "zero": {"phrases": one, "embeddings": np.zeros((1, 2))},
        "nan": {"phrases": one, "embeddings": np.full((1, 2), np.nan)},
        "texts": {"phrases": one, "embeddings": np.array([["x"]])},
        "objects": {"phrases": np.array([{}]), "embeddings": np.ones((1, 2))},
    }.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
    (tmp_path / "rubbish.npz").write_bytes(b"PK\x03\x04rubbish")
    for path in (*tmp_path.iterdir(), tmp_path / "absent.npz"):
        with pytest.raises(InputError, match=path.name) as caught:
            TextBank(path)
        assert "\n" not in str(caught.value)


def test_a_text_tower_embeds_prompts_of_up_to_77_tokens():
    encoder = CLIPTextEncoder(load_clip(TINY), TINY)
    # One token starts and one ends the prompt: 75 words of one token just fit.
    vectors = encoder.encode([*DESCRIPTIONS.values(), "road " * 75])
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(12))
    torch.testing.assert_close(encoder.encode([DESCRIPTIONS["car"]])[0], vectors[8])
    with pytest.raises(InputError, match=r"'road road .* is longer than CLIP's 77 tokens"):
        encoder.encode(["car", "road " * 76])


def test_the_real_vectors_of_clip_name_the_eleven_classes(clip_text_bank):
    vectors = embed(class_prompts("names"), TextBank(clip_text_bank)).vectors
    assert vectors.shape == (11, 512)
    similarity = vectors @ vectors.T
    assert similarity[10].argsort(descending=True)[1] == 9  # a rider is most like a person


def test_descriptions_are_two_sentences_within_clips_context():
    tokenizer = open_clip.get_tokenizer("ViT-B-32-quickgelu")
    assert tuple(DESCRIPTIONS) == CLASSES
    for name, text in DESCRIPTIONS.items():
        assert text.count(". ") + text.endswith(".") == 2, name
        assert not tokenizer([text], context_length=200)[0, 77:].any(), name
