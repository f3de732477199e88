"""Text sets, both sources of embeddings, the cache, and the 77 tokens."""

import json

import numpy as np
import pytest
import torch

from camvid_lang.data.classes import ALIASES, CLASSES, DESCRIPTIONS
from camvid_lang.errors import InputError
from camvid_lang.models import text as text_module
from camvid_lang.models.encoder import TINY
from camvid_lang.models.text import (
    CLIPTextEncoder,
    TextBank,
    class_prompts,
    embed_classes,
    parse_classes,
)

LONG = " ".join(["pavement"] * 100)


def bank(path, phrases, dimension=5, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(len(phrases), dimension))
    np.savez(path, phrases=np.array(phrases), embeddings=vectors.astype(np.float32))
    return path, torch.nn.functional.normalize(torch.from_numpy(vectors).float(), dim=1)


def test_the_two_text_sets_name_the_eleven_classes():
    assert tuple(class_prompts("names")) == CLASSES
    assert class_prompts("names")["pavement"] == ["pavement"]
    assert class_prompts("descriptions") == {k: [v] for k, v in DESCRIPTIONS.items()}
    assert set(ALIASES) == set(CLASSES)


def test_lists_mappings_and_files_are_taken(tmp_path):
    assert class_prompts(["car", "shop  window"]) == {
        "car": ["car"],
        "shop  window": ["shop window"],
    }
    mapping = {"vehicle": ["car", "lorry"], "tree": "tree"}
    expected = {"vehicle": ["car", "lorry"], "tree": ["tree"]}
    assert class_prompts(mapping) == expected
    (tmp_path / "set.json").write_text(json.dumps(mapping))
    assert class_prompts(str(tmp_path / "set.json")) == expected
    assert parse_classes("car|lorry, tree,") == {"car": ["car", "lorry"], "tree": ["tree"]}


@pytest.mark.parametrize("bad", [[], {}, [""], ["car", "car"], {"a": []}, {"a": [3]}, 7, [None]])
def test_unusable_classes_are_refused(bad):
    with pytest.raises(InputError):
        class_prompts(bad)


@pytest.mark.parametrize("line", ["", " , ", "car,,tree", "car|,tree", "car, car"])
def test_unusable_lines_of_classes_are_refused(line):
    with pytest.raises(InputError):
        parse_classes(line)


def test_a_class_is_the_normalised_mean_of_its_phrases(tmp_path):
    path, vectors = bank(tmp_path / "bank.npz", ["a/car", "b/car", "lorry", "tree"])
    matrix = embed_classes({"vehicle": ["car", "lorry"], "tree": ["tree"]}, TextBank(path))
    car = torch.nn.functional.normalize(vectors[:2].mean(dim=0), dim=0)
    vehicle = torch.nn.functional.normalize((car + vectors[2]) / 2, dim=0)
    torch.testing.assert_close(matrix, torch.stack([vehicle, vectors[3]]))
    torch.testing.assert_close(TextBank(path).encode(["b/car"])[0], vectors[1])


def test_a_bank_is_searched_by_alias_only_where_the_name_is_missing(tmp_path):
    path, vectors = bank(tmp_path / "bank.npz", ["c/sidewalk", "c/vegetation", "d/tree-other"])
    torch.testing.assert_close(TextBank(path).encode(["pavement"])[0], vectors[0])
    torch.testing.assert_close(TextBank(path).encode(["tree"])[0], vectors[1])
    with pytest.raises(InputError, match=r"'sidewalks'.*sidewalk"):
        TextBank(path).encode(["sidewalks"])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04rubbish", b"\x93NUMPY"])
def test_damaged_banks_are_refused(tmp_path, content):
    (tmp_path / "bank.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"bank\.npz"):
        TextBank(tmp_path / "bank.npz")


def test_banks_with_other_contents_are_refused(tmp_path):
    cases = {
        "lacks": {"phrases": np.array(["a"])},
        "shape": {"phrases": np.array(["a", "b"]), "embeddings": np.ones((3, 2))},
        "zero": {"phrases": np.array(["a"]), "embeddings": np.zeros((1, 2))},
        "nan": {"phrases": np.array(["a"]), "embeddings": np.full((1, 2), np.nan)},
        "objects": {"phrases": np.array([{}]), "embeddings": np.ones((1, 2))},
    }
    for name, arrays in cases.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
        with pytest.raises(InputError, match=name):
            TextBank(tmp_path / f"{name}.npz")
    with pytest.raises(InputError, match="does not exist"):
        TextBank(tmp_path / "absent.npz")


def test_embeddings_are_cached_by_phrase(tmp_path, monkeypatch):
    first = CLIPTextEncoder(TINY, cache=tmp_path).encode(["car", "tree"])
    assert first.dtype == torch.float32
    torch.testing.assert_close(first.norm(dim=1), torch.ones(2))
    monkeypatch.setattr(text_module, "load_clip", lambda *_: pytest.fail("tower loaded again"))
    assert CLIPTextEncoder(TINY, cache=tmp_path).encode(["tree", "car"]).equal(first.flip(0))


def test_a_damaged_cache_entry_is_computed_again(tmp_path):
    first = CLIPTextEncoder(TINY, cache=tmp_path).encode(["car"])
    (entry,) = (tmp_path / "text").iterdir()
    entry.write_bytes(entry.read_bytes()[:50])
    assert CLIPTextEncoder(TINY, cache=tmp_path).encode(["car"]).equal(first)


def test_a_phrase_over_77_tokens_is_refused_and_descriptions_fit(tmp_path):
    with pytest.raises(InputError, match="77 tokens"):
        CLIPTextEncoder(TINY, cache=tmp_path).encode(["car", LONG])
    # One token starts and one ends the phrase: 75 words of one token just fit.
    source = CLIPTextEncoder(TINY, cache=tmp_path)
    assert (
        source.encode(["road " * 75]).shape == source.encode(list(DESCRIPTIONS.values()))[:1].shape
    )
    with pytest.raises(InputError, match="77 tokens"):
        source.encode(["road " * 76])


def test_the_real_vectors_of_clip_name_the_eleven_classes(clip_text_bank):
    matrix = embed_classes(class_prompts("names"), TextBank(clip_text_bank))
    assert matrix.shape == (11, 512)
    similarity = matrix @ matrix.T
    assert similarity[10].argsort(descending=True)[1] == 9  # a rider is most like a person
