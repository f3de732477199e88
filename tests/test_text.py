"""Classes and their prompts, both text encoders, and the 77 tokens."""

import json
import unicodedata

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from camvid_lang.data.classes import ALIASES, CLASSES, DESCRIPTIONS
from camvid_lang.errors import InputError
from camvid_lang.models.encoder import TINY, load_clip
from camvid_lang.models.text import (
    CLIPTextEncoder,
    TextBank,
    class_prompts,
    embed_classes,
    parse_classes,
)


def bank(path, phrases, dimension=5, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(len(phrases), dimension))
    np.savez(path, phrases=np.array(phrases), embeddings=vectors.astype(np.float32))
    return TextBank(path), F.normalize(torch.from_numpy(vectors).float(), dim=1)


def test_the_two_text_sets_name_the_eleven_classes():
    assert class_prompts("names") == {name: [name] for name in CLASSES}
    assert class_prompts("descriptions") == {name: [DESCRIPTIONS[name]] for name in CLASSES}
    assert set(ALIASES) <= set(CLASSES)


def test_lists_and_mappings_are_accepted():
    spaced = {"car": ["car"], "shop  window": ["shop window"]}
    assert class_prompts(["car", "shop  window"]) == spaced
    several = {"car | lorry": ["car", "lorry"], "tree": ["tree"]}
    assert class_prompts(["car | lorry", "tree"]) == several
    with pytest.raises(InputError, match="must be texts that are not empty"):
        class_prompts(["car |", "tree"])
    mapping = {"vehicle": ["car", "lorry"], "tree": "tree"}
    assert class_prompts(mapping) == {"vehicle": ["car", "lorry"], "tree": ["tree"]}


@pytest.mark.parametrize(
    "bad", [[], {}, [""], ["car", "car"], {"a": []}, {"a": [3]}, {"a": {"b": "c"}}, [None], [["a"]]]
)
def test_unusable_classes_are_refused(bad, tmp_path):
    with pytest.raises(InputError, match="class"):
        class_prompts(bad)
    (tmp_path / "set.json").write_text(json.dumps(bad))
    for read in (class_prompts, parse_classes):
        with pytest.raises(InputError, match=r"set\.json.*class"):
            read(str(tmp_path / "set.json"))


@pytest.mark.parametrize(
    "content",
    [
        *(b'{"car": "a", "car": "b"}', b'["car",]', b"car, tree", b'"car"', b"7", b"null", b""),
        *(b"\xff\xfe", b"[" * 100_000, b'{"a": NaN', b"1e999999", '["pavé"]'.encode("latin-1")),
    ],
    ids=lambda content: repr(content[:12]),
)
def test_a_damaged_text_set_is_named(content, tmp_path):
    (tmp_path / "set.json").write_bytes(content)
    with pytest.raises(InputError, match=r"set\.json"):
        class_prompts(str(tmp_path / "set.json"))


def test_a_missing_text_set_is_named():
    with pytest.raises(InputError, match=r"text set 'name' is not names, descriptions or"):
        class_prompts("name")


@pytest.mark.parametrize("separator", [",", ", ", "\n", "\r\n", ",\n", "\n\n"])
def test_classes_are_separated_by_commas_or_lines(separator):
    text = separator.join(["car | lorry", '"sign, round"', "shop  window"]) + separator
    assert parse_classes(text) == {
        "car": ["car", "lorry"],
        "sign, round": ["sign, round"],
        "shop  window": ["shop window"],
    }


def test_quotes_protect_commas_in_classes_and_prompts():
    for text in (
        '"a wide, empty road", sky',
        "“a wide, empty road”,sky,",
        "„a wide, empty road“ , sky",
        "'a wide, empty road', sky",
        "«a wide, empty road», sky",
        '\ufeff"a wide, empty road"\r\nsky\r\n',
        '"a wide, empty road"\rsky',
        "[\"a wide, empty road\", 'sky']".replace("'", '"'),
    ):
        assert list(parse_classes(text)) == ["a wide, empty road", "sky"], text
    assert parse_classes('"a, b" | c, d') == {"a, b": ["a, b", "c"], "d": ["d"]}
    assert parse_classes('"car | lorry", sky')["car"] == ["car", "lorry"]
    assert list(parse_classes("driver's cab, 12\" wheel, 'n roll, [sic]")) == [
        *("driver's cab", '12" wheel', "'n roll", "[sic]")
    ]
    assert list(parse_classes("路，车、天空")) == ["路", "车", "天空"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("words.txt", b'\xef\xbb\xbfcar | lorry\r\n\r\n"a wide, empty road"\r\n'),
        ("words.list", b'car|lorry, "a wide, empty road"'),
        (
            "words.json",
            b'\xef\xbb\xbf{"car": ["car", "lorry"], "a wide, empty road": "a wide, empty road"}',
        ),
        ("a, b.json", b'{"car": ["car", "lorry"], "a wide, empty road": ["a wide, empty road"]}'),
    ],
)
def test_classes_are_read_from_a_file(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    expected = {"car": ["car", "lorry"], "a wide, empty road": ["a wide, empty road"]}
    for path in (str(tmp_path / name), tmp_path / name):
        assert parse_classes(path) == expected
    assert class_prompts(str(tmp_path / name)) == expected


def test_a_file_of_classes_that_is_missing_is_no_class():
    for name in ("a.txt", "words.json", "no such/words.TXT"):
        with pytest.raises(InputError, match=f"{name} is missing; write a class of this name in q"):
            parse_classes(name)
    assert list(parse_classes('"a.txt"')) == list(parse_classes(["a.txt"])) == ["a.txt"]
    assert list(parse_classes("road.json, a.txt")) == ["road.json", "a.txt"]


@pytest.mark.parametrize(
    "classes",
    [
        ["Car", "car"],
        "Straße, STRAßE",
        ["caf\u00e9", "cafe\u0301"],
        ["shop window", "shop  window"],
        {"vehicle": ["car", "lorry"], "transport": ["Lorry", "car"]},
    ],
)
def test_what_clip_cannot_tell_apart_is_one_class(classes):
    with pytest.raises(InputError, match=r"is given twice, as .*case and spaces"):
        parse_classes(classes)
    assert list(parse_classes(["cafe\u0301"])) == ["caf\u00e9"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        " , ",
        "\n",
        "car|,tree",
        "|",
        "car, car",
        '"car, tree',
        '"car\ntree"',
        '"a" b',
        "['car', 'tree']",
    ],
)
def test_unusable_texts_of_classes_are_refused(text):
    with pytest.raises(InputError, match="class"):
        parse_classes(text)


def test_a_class_is_the_normalised_mean_of_its_prompts(tmp_path):
    encoder, vectors = bank(tmp_path / "bank.npz", ["a/car", "b/car", "lorry", "tree"])
    matrix = embed_classes({"vehicle": ["car", "lorry"], "tree": ["tree"]}, encoder)
    car = F.normalize(vectors[:2].mean(dim=0), dim=0)
    vehicle = F.normalize((car + vectors[2]) / 2, dim=0)
    torch.testing.assert_close(matrix, torch.stack([vehicle, vectors[3]]))
    torch.testing.assert_close(encoder.encode(["b/car"])[0], vectors[1])


def test_prompts_that_cancel_are_refused(tmp_path):
    vectors = np.array([[1, 0], [-1, 0]], dtype=np.float32)
    np.savez(tmp_path / "bank.npz", phrases=np.array(["car", "van"]), embeddings=vectors)
    with pytest.raises(InputError, match="class 'car': the embeddings of its prompts cancel"):
        embed_classes({"car": ["car", "van"]}, TextBank(tmp_path / "bank.npz"))


def test_a_bank_is_searched_by_alias_where_the_name_is_missing(tmp_path):
    encoder, vectors = bank(tmp_path / "bank.npz", ["c/sidewalk", "c/vegetation", "d/tree-other"])
    torch.testing.assert_close(encoder.encode(["pavement", "tree"]), vectors[:2])
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
    for number, content in enumerate([b"", b"PK\x03\x04rubbish", b"\x93NUMPY"]):
        (tmp_path / f"{number}.npz").write_bytes(content)
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
    matrix = embed_classes(class_prompts("names"), TextBank(clip_text_bank))
    assert matrix.shape == (11, 512)
    similarity = matrix @ matrix.T
    assert similarity[10].argsort(descending=True)[1] == 9  # a rider is most like a person


def test_one_prompt_in_two_unicode_forms_is_one_prompt(tmp_path):
    composed, apart = (unicodedata.normalize(form, "rue pavée") for form in ("NFC", "NFD"))
    text_bank, vectors = bank(tmp_path / "bank.npz", [apart, "car"])
    for prompt in (composed, apart):
        assert text_bank.encode([prompt])[0].allclose(vectors[0])
