"""The benchmark measures what it says, and the exact head is faster and leaner."""

import json

import pytest

from camvid_lang.bench import summary
from camvid_lang.cli import main
from camvid_lang.errors import InputError
from camvid_lang.measuring import Case, largest_batch, parse_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [("15GB", 15 * 2**30), ("800 MB", 800 * 2**20), ("1.5g", 3 * 2**29), ("4096", 4096)],
)
def test_sizes_are_read(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "15 parsecs", "1e3"])
def test_other_sizes_are_refused(text):
    with pytest.raises(InputError, match="15GB"):
        parse_bytes(text)


@pytest.mark.slow
def test_bench_compares_draws_and_finds_the_exact_head_faster_and_leaner(tmp_path, capsys):
    file, figure = tmp_path / "bench.json", tmp_path / "bench.png"
    arguments = ["--experiment", "swiftnet", "--json", str(file), "--figure", str(figure)]
    assert main(["bench", *arguments]) == 0
    results = json.loads(file.read_text())
    assert capsys.readouterr().out.strip() == summary(results)
    for what in ("head", "step", "inference"):
        for style in ("thesis", "ours"):
            assert results[what][style]["seconds"] > 0
            assert results[what][style]["extra_bytes"] > 0
    thesis, ours = results["head"]["thesis"], results["head"]["ours"]
    # Half of what is measured on a quiet machine: other work may share this one.
    assert thesis["seconds"] > 4 * ours["seconds"]
    assert thesis["extra_bytes"] > 10 * ours["extra_bytes"]
    assert 0 < results["roofline"]["share_of_matmul"] < 1.5
    assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_largest_batch_stays_within_its_budget():
    budget = parse_bytes("700MB")
    found = largest_batch(Case("step", "ours", "swiftnet", size=(64, 64)), budget)
    assert found["batch"] >= 4
    assert found["bytes"] <= budget
