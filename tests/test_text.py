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
    assert set(ALIASES) == set(CLASSES)


def test_lists_mappings_and_files_are_accepted(tmp_path):
    spaced = {"car": ["car"], "shop  window": ["shop window"]}
    assert class_prompts(["car", "shop  window"]) == spaced
    mapping = {"vehicle": ["car", "lorry"], "tree": "tree"}
    expected = {"vehicle": ["car", "lorry"], "tree": ["tree"]}
    assert class_prompts(mapping) == expected
    (tmp_path / "set.json").write_text(json.dumps(mapping))
    assert class_prompts(str(tmp_path / "set.json")) == expected


@pytest.mark.parametrize("bad", [[], {}, [""], ["car", "car"], {"a": []}, {"a": [3]}, [None], 7])
def test_unusable_classes_are_refused(bad, tmp_path):
    if bad != 7:
        with pytest.raises(InputError, match="class"):
            class_prompts(bad)
    (tmp_path / "set.json").write_text(json.dumps(bad))
    with pytest.raises(InputError, match=r"set\.json.*(class|JSON)"):
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


@pytest.mark.parametrize("text", ["", " , ", "\n", "car|,tree", "|", "car, car", '"car, tree'])
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


def test_a_text_set_may_have_a_byte_order_mark(tmp_path):
    file = tmp_path / "set.json"
    text = json.dumps({"rue": ["rue pavée"]}, ensure_ascii=False)
    file.write_text(text, encoding="utf-8-sig")
    assert class_prompts(str(file)) == {"rue": ["rue pavée"]}
    file.write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=r"set\.json"):
        class_prompts(str(file))
