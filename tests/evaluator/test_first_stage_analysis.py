import pytest

from xsweep.errors import ConfigError
from xsweep.evaluator.first_stage import LUCENE_STOP_WORDS, lucene_words, snowball_words


def test_lucenes_analysis_by_hand() -> None:
    # Porter's own examples: caresses, ponies, relational, hopping.
    text = "The caresses of Ponies: relational hopping isn't 3.14, dog’s x-ray"
    assert lucene_words([text, ""]) == [
        ["caress", "poni", "relat", "hop", "isn't", "3.14", "dog", "x", "rai"],
        [],
    ]
    assert lucene_words(["The runner's 3.14 U.S. dogs"]) == [["runner", "3.14", "u.", "dog"]]
    assert len(LUCENE_STOP_WORDS) == 33


def test_snowballs_analysis_drops_stop_words_and_single_letters() -> None:
    assert snowball_words(["The running dogs x"], "english") == [["run", "dog"]]
    assert snowball_words(["The running dogs x"], None) == [["the", "running", "dogs"]]
    with pytest.raises(ConfigError, match="unknown stemmer 'klingon'"):
        snowball_words(["x"], "klingon")
