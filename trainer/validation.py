"""Validation: one measure of the model so far, from re-ranking the candidates of collections."""

from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from evaluator.collections import read_texts
from evaluator.measures import evaluate_run, mean
from evaluator.pairs import PairEncoder
from evaluator.scoring import score_pairs
from evaluator.tokenizers import tokenize
from evaluator.tokens import TokenStore
from evaluator.trec import Run, read_qrels, read_run
from trainer.specs import TrainSpec, validation_roles
from xsweep import ConfigError

Validate = Callable[[PreTrainedModel], float]


def prepare_validation(
    spec: TrainSpec, inputs: Mapping[str, Path], tokenizer: PreTrainedTokenizerFast
) -> Validate | None:
    """A function that measures a model on the validation collections; None where there are none.

    It needs the inputs `validation` (a candidates folder) and `validation_tokens`, and
    `validation_2`, `validation_tokens_2` and so on for further collections. A collection's value
    is the mean over every query of its qrels, and the result the unweighted mean of collections;
    positives that the first stage missed are not added.
    """
    if spec.validation is None:
        return None
    parts: list[Validate] = []
    for place in range(len(spec.validation.collections)):
        candidates, tokens = validation_roles(place)
        for role in (candidates, tokens):
            if role not in inputs:
                raise ConfigError(
                    f"validation needs the input {role!r}: name its folder in `inputs`"
                )
        parts.append(_prepare(spec, Path(inputs[candidates]), Path(inputs[tokens]), tokenizer))
    return lambda model: fmean(part(model) for part in parts)


def _prepare(
    spec: TrainSpec, folder: Path, tokens: Path, tokenizer: PreTrainedTokenizerFast
) -> Validate:
    settings = spec.validation
    assert settings
    run = read_run(folder / "candidates.run.gz")
    qrels = read_qrels(folder / "qrels.txt")
    texts = dict(read_texts(folder / "queries.jsonl.gz"))
    documents = TokenStore(tokens)
    keys = [
        (query_id, doc_id)
        for query_id, scores in run.items()
        if query_id in qrels
        for doc_id in list(scores)[: settings.depth]
    ]
    if not keys:
        raise ConfigError(f"{folder}: no candidates for a judged query, nothing to validate on")
    query_ids = list(dict.fromkeys(query_id for query_id, _ in keys))
    ids = tokenize(tokenizer, [texts[query_id] for query_id in query_ids], spec.query_tokens)
    queries = dict(zip(query_ids, ids, strict=True))
    pairs = [(queries[query_id], documents[doc_id]) for query_id, doc_id in keys]
    encoder = PairEncoder(tokenizer)

    def validate(model: PreTrainedModel) -> float:
        scored = score_pairs(
            model,
            encoder,
            pairs,
            query_tokens=spec.query_tokens,
            document_tokens=spec.document_tokens,
            precision=spec.optimisation.precision,
        )
        reranked: Run = {query_id: {} for query_id in query_ids}
        for (query_id, doc_id), score in zip(keys, scored.scores.tolist(), strict=True):
            reranked[query_id][doc_id] = score
        (values,) = evaluate_run(qrels, reranked, [settings.measure]).values()
        return mean(values)

    return validate
