"""Scores of tiny random language models, beside plain transformers on one prompt at a time."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from xsweep.errors import ConfigError
from xsweep.evaluator import scoring
from xsweep.evaluator.models.causal_reranker import PromptEncoder, load_causal_reranker
from xsweep.evaluator.models.token_store import Sources
from xsweep.evaluator.prompts import PROMPTS
from xsweep.evaluator.rerank import ToRerank, cut_texts, rerank
from xsweep.evaluator.specs import ModelSpec, PromptSpec, ScoringSpec, TeacherModelSpec

QUERIES = {"q1": "where does the Nile flow?", "q2": "?", "q3": "2,026 rivers"}
DOCUMENTS = {
    "d1": "The Nile flows north to the sea.\n\nIt is long.",
    "d2": "no",
    "d3": "!? naïve café, 北京 and many rivers " * 6,
    "d4": "yes, the river is in Africa",
}
QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen's pre-tokenizer, which joins punctuation with the line ends behind it."""
ANSWERS = ["yes", "no", "1", "0", "Yes", "true", "false"]
DECODERS = ("qwen3", "qwen2", "gemma", "gemma2", "gpt2", "bloom")
SIDES = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
LAYERS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
CONFIGS: dict[str, dict] = {
    "qwen3": SIDES | LAYERS,
    "qwen2": SIDES | LAYERS,
    "gemma": SIDES | LAYERS,
    "gemma2": SIDES | LAYERS | {"sliding_window": 64, "final_logit_softcapping": 2.0},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 1024},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2},
    "t5": {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2},
}


def make_tokenizer(family: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(QWEN), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    backend.decoder = decoders.ByteLevel()
    special = ["<pad>", "</s>", "<bos>", "<|im_start|>", "<|im_end|>"]
    prompts = [part for name in PROMPTS for part in PromptSpec.model_validate(name).template]
    backend.train_from_iterator(
        [*prompts, *QUERIES.values(), *DOCUMENTS.values(), *ANSWERS * 9],
        trainers.BpeTrainer(
            vocab_size=600,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    around = {"gemma": "<bos> $A", "gemma2": "<bos> $A", "t5": "$A </s>"}.get(family)
    if around:
        names = [(name, backend.token_to_id(name)) for name in ("<bos>", "</s>")]
        backend.post_processor = processors.TemplateProcessing(single=around, special_tokens=names)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", bos_token="<bos>"
    )


@pytest.fixture(scope="module")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = folder = tmp_path_factory.mktemp(family)
            tokenizer = make_tokenizer(family)
            config = AutoConfig.for_model(
                family,
                vocab_size=len(tokenizer),
                pad_token_id=0,
                decoder_start_token_id=0,
                initializer_range=0.3,
                initializer_factor=3.0,
                **CONFIGS[family],
            )
            torch.manual_seed(3)
            kind = AutoModelForSeq2SeqLM if family == "t5" else AutoModelForCausalLM
            kind.from_config(config).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        return made[family]

    return make


def plain_ids(
    tokenizer: PreTrainedTokenizerFast, prompt: PromptSpec, query: str, document: str
) -> list[int]:
    """The token ids of a prompt, part by part; BOS and EOS as the tokenizer adds them."""
    around = tokenizer("x")["input_ids"]
    middle = around.index(tokenizer("x", add_special_tokens=False)["input_ids"][0])
    ids = around[:middle]
    for part in prompt.template:
        text = part.replace("{query}", query).replace("{document}", document)
        ids += tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids + around[middle + 1 :]


def plain_score(folder: Path, prompt: PromptSpec, query: str, document: str) -> float:
    """The score of one prompt by plain transformers, without padding, cache or batch."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([plain_ids(tokenizer, prompt, query, document)])
    with torch.no_grad():
        if AutoConfig.from_pretrained(folder).is_encoder_decoder:
            model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
            logits = model(input_ids=ids, decoder_input_ids=torch.tensor([[0]])).logits
        else:
            logits = AutoModelForCausalLM.from_pretrained(folder).eval()(ids).logits
    tokens = tokenizer.convert_tokens_to_ids(list(prompt.answers))
    first, *second = logits[0, -1, tokens].tolist()
    return first - sum(second)


def teacher(folder: Path, prompt: str | dict) -> TeacherModelSpec:
    spec = {"type": "causal_reranker", "models": [{"folder": str(folder)}], "prompt": prompt}
    return TeacherModelSpec.model_validate(spec)


def to_rerank(queries: dict = QUERIES, documents: dict = DOCUMENTS) -> list[ToRerank]:
    lists = {query: list(documents) for query in queries}
    return [ToRerank(lists, Sources(queries, lambda ids: {key: documents[key] for key in ids}))]


SETTINGS = ScoringSpec(query_tokens=60, document_tokens=250, batch_tokens=300)


@pytest.mark.parametrize(
    ("family", "prompt"),
    [(family, "qwen3-reranker") for family in DECODERS]
    + [("qwen2", "mxbai-rerank-v2"), ("gemma", "bge-reranker-gemma"), ("t5", "monot5")],
)
def test_scores_equal_those_of_plain_transformers_one_prompt_at_a_time(
    family: str, prompt: str, make_model: Callable[[str], Path]
) -> None:
    folder, spec = make_model(family), PromptSpec.model_validate(prompt)
    (found,) = rerank(teacher(folder, prompt), to_rerank(), SETTINGS)
    expected = {
        (query, doc): plain_score(folder, spec, QUERIES[query], DOCUMENTS[doc])
        for query in QUERIES
        for doc in DOCUMENTS
    }
    assert np.ptp(list(expected.values())) > 0.3
    scores = {(query, doc): found.run[query][doc] for query, doc in expected}
    assert scores == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("family", [*DECODERS, "t5"])
def test_a_prompt_scores_alike_whatever_is_beside_it(
    family: str, make_model: Callable[[str], Path]
) -> None:
    models = teacher(make_model(family), "monot5")
    runs = [
        rerank(models, to_rerank(), SETTINGS.model_copy(update={"batch_tokens": budget}))[0].run
        for budget in (1, 10_000)
    ]
    for query in QUERIES:
        assert runs[0][query] == pytest.approx(runs[1][query], rel=1e-4, abs=1e-4)


def test_the_beginning_that_prompts_share_is_computed_once(
    make_model: Callable[[str], Path],
) -> None:
    model, tokenizer = load_causal_reranker(
        ModelSpec(folder=str(make_model("qwen3"))),
        prompt := PromptSpec.model_validate("qwen3-reranker"),
        torch.float32,
    )
    encoder = PromptEncoder(tokenizer, prompt, model)
    beginning = tokenizer.decode(encoder.shared)
    assert beginning == prompt.template[0] + prompt.template[1].partition(" {query}")[0]
    batch = encoder.collate(encoder.encode_all([("where?", "here"), ("who", "she")], 0, 0))
    shared, (count, longest) = len(encoder.shared), batch["input_ids"].shape
    assert batch["attention_mask"].shape == (count, shared + longest)
    assert batch["position_ids"].amax(dim=1).tolist() == [
        len(pair.input_ids) - 1
        for pair in encoder.encode_all([("where?", "here"), ("who", "she")], 0, 0)
    ]


def test_a_text_that_changes_the_shared_tokens_is_scored_whole(
    make_model: Callable[[str], Path],
) -> None:
    prompt = {"template": "Is this a question:{query}{document}", "answers": ["yes", "no"]}
    queries = {"q1": "what", "q2": ":\n what"}  # Qwen's pre-tokenizer joins the colons
    folder, spec = make_model("qwen3"), PromptSpec.model_validate(prompt)
    (found,) = rerank(teacher(folder, prompt), to_rerank(queries), SETTINGS)
    for query, text in queries.items():
        for doc, document in DOCUMENTS.items():
            expected = plain_score(folder, spec, text, document)
            assert found.run[query][doc] == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("family", ["gemma2", "t5"])
def test_states_that_padding_would_shift_are_not_shared(
    family: str, make_model: Callable[[str], Path]
) -> None:
    prompt = PromptSpec.model_validate("qwen3-reranker")
    folder = ModelSpec(folder=str(make_model(family)))
    model, tokenizer = load_causal_reranker(folder, prompt, torch.float32)
    assert len(PromptEncoder(tokenizer, prompt, model).shared) == 0


def test_bf16_loads_bf16_weights_and_scores_in_fp32(make_model: Callable[[str], Path]) -> None:
    folder, prompt = make_model("qwen3"), PromptSpec.model_validate("qwen3-reranker")
    spec = ModelSpec(folder=str(folder))
    model, _ = load_causal_reranker(spec, prompt, torch.bfloat16)
    assert {name: each.dtype for name, each in model.named_parameters()} == {
        name: torch.float32 if name == "lm_head.weight" else torch.bfloat16
        for name, _ in model.named_parameters()
    }
    assert model.lm_head.weight.shape == (2, 32)
    settings = [SETTINGS.model_copy(update={"precision": each}) for each in ("fp32", "bf16")]
    exact, rough = (
        rerank(teacher(folder, "qwen3-reranker"), to_rerank(), each)[0] for each in settings
    )
    assert rough.precision == "bf16"
    difference = [rough.run[q][d] - exact.run[q][d] for q in QUERIES for d in DOCUMENTS]
    assert 0 < np.abs(difference).max() < 0.3
    spread = [score for docs in rough.run.values() for score in docs.values()]
    assert len(set(spread)) == len(spread)


def test_sentence_transformers_gives_the_same_scores(make_model: Callable[[str], Path]) -> None:
    from sentence_transformers import CrossEncoder

    prompt = {"template": ["{query}", "{document}"], "answers": ["yes", "no"]}
    folder = make_model("qwen3")
    peer = CrossEncoder(str(folder), device="cpu", activation_fn=torch.nn.Identity())
    (found,) = rerank(teacher(folder, prompt), to_rerank(), SETTINGS)
    pairs = [(query, doc) for query in QUERIES for doc in DOCUMENTS]
    scores = peer.predict([(QUERIES[query], DOCUMENTS[doc]) for query, doc in pairs])
    assert [found.run[query][doc] for query, doc in pairs] == pytest.approx(
        scores.tolist(), abs=1e-4
    )


def test_several_devices_and_a_resumed_job_give_the_same_scores(
    make_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = teacher(make_model("qwen3"), "qwen3-reranker")
    (expected,) = rerank(models, to_rerank(), SETTINGS)
    monkeypatch.setattr(scoring, "SAVE_EVERY_S", 0.0)
    seen: list[int] = []

    def stop(done: int, total: int, **_: float) -> None:
        seen.append(done)
        if len(seen) == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        rerank(models, to_rerank(), SETTINGS, stop, [tmp_path])
    (resumed,) = rerank(models, to_rerank(), SETTINGS, None, [tmp_path])
    assert resumed.run == expected.run
    two = [torch.device("cpu"), torch.device("cpu")]
    monkeypatch.setattr("xsweep.evaluator.rerank.visible_devices", lambda: two)
    (shared,) = rerank(models, to_rerank(), SETTINGS)
    for query in QUERIES:
        assert shared.run[query] == pytest.approx(expected.run[query], rel=1e-4, abs=1e-4)


def test_texts_are_cut_after_their_tokens() -> None:
    tokenizer, counts = make_tokenizer("qwen3"), dict[str, int]()
    text = "北京 rivers, and 2,026 more"
    ids = tokenizer(text)["input_ids"]
    cut = cut_texts(tokenizer, {"d": text, "short": "no", "none": ""}, (8, 2, 9), counts)
    assert cut["short"] == ["no"]
    assert cut["none"] == [""]
    assert text.startswith(cut["d"][0])
    assert len(cut["d"]) == -(-(len(ids) - 2) // 6)
    assert counts[cut["d"][0]] == 8
    assert text.endswith(cut["d"][-1])


def test_an_answer_of_several_tokens_is_refused(make_model: Callable[[str], Path]) -> None:
    prompt = {"template": "{query} {document}", "answers": ["irrelevant"]}
    spec = ModelSpec(folder=str(make_model("qwen3")))
    with pytest.raises(ConfigError, match=r"the answer 'irrelevant' is \d+ tokens"):
        load_causal_reranker(spec, PromptSpec.model_validate(prompt), torch.float32)


def test_a_prompt_that_is_too_long_is_refused(make_model: Callable[[str], Path]) -> None:
    documents = {"d": "river " * 2000}
    settings = SETTINGS.model_copy(update={"document_tokens": 4000})
    with pytest.raises(ConfigError, match="the model takes 1024: lower document_tokens"):
        rerank(teacher(make_model("gpt2"), "monot5"), to_rerank(documents=documents), settings)


def test_a_teach_job_and_an_evaluation_give_a_pair_the_same_score(
    make_model: Callable[[str], Path], tmp_path: Path
) -> None:
    collection = tiny.write_collection(tmp_path / "mine", queries=4, documents=20)
    model = teacher(make_model("qwen3"), "mxbai-rerank-v2").model_dump()
    taught, ranked = tiny.teach_and_evaluate(tmp_path, collection, model, depth=5)
    assert sorted(taught) == sorted(ranked) == ["q0", "q1", "q2", "q3"]
    for query, docs in ranked.items():
        assert {doc: taught[query][doc] for doc in docs} == pytest.approx(docs, abs=1e-4)
        assert len(set(docs.values())) > 1
