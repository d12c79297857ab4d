"""Published questions to language models, about one document or the passages of a window."""

from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any

Messages = list[dict[str, str]]
"""The turns of a chat: who speaks, and what."""

PROMPTS: dict[str, dict[str, Any]] = {
    "qwen3-reranker": {
        "template": (
            "<|im_start|>system\nJudge whether the Document meets the requirements based on the "
            'Query and the Instruct provided. Note that the answer can only be "yes" or "no".'
            "<|im_end|>\n<|im_start|>user\n",
            "<Instruct>: Given a web search query, retrieve relevant passages that answer the query"
            "\n<Query>: {query}\n<Document>: {document}",
            "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        ),
        "answers": ("yes", "no"),
    },
    "mxbai-rerank-v2": {
        "template": (
            "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful "
            "assistant.<|im_end|>\n<|im_start|>user\n",
            *("query: {query}", "\n", "document: {document}", "\n"),
            "You are a search relevance expert who evaluates how well documents match search "
            "queries. For each query-document pair, carefully analyze the semantic relationship "
            "between them, then provide your binary relevance judgment (0 for not relevant, 1 for "
            "relevant).\nRelevance:",
            "<|im_end|>\n<|im_start|>assistant\n",
        ),
        "answers": ("1", "0"),
    },
    "bge-reranker-gemma": {
        "template": (
            *("A: {query}", "\n", "B: {document}", "\n"),
            "Given a query A and a passage B, determine whether the passage contains an answer to "
            "the query by providing a prediction of either 'Yes' or 'No'.",
        ),
        "answers": ("Yes",),
    },
    "monot5": {
        "template": "Query: {query} Document: {document} Relevant:",
        "answers": ("true", "false"),
    },
}
"""Prompts by the models that were trained with them, part by part as their programs tokenise them:
Qwen/Qwen3-Reranker, mixedbread-ai/mxbai-rerank-v2, BAAI/bge-reranker-v2-gemma, castorini/monot5."""


def messages_of(prompt: str, query: str, passages: Sequence[str]) -> Messages:
    """The question about one window's passages, in the words of RankZephyr or RankGPT.

    FIRST's are RankZephyr's, with letters for numbers.
    """
    count = len(passages)
    if prompt != "rankgpt":
        kind, names = "a numerical", [str(place) for place in range(1, count + 1)]
        if prompt == "first":
            kind, names = "an alphabetical", list(ascii_uppercase[:count])
        listed = "\n".join(f"[{name}] {text}" for name, text in zip(names, passages, strict=True))
        user = (
            f"I will provide you with {count} passages, each indicated by {kind} identifier "
            f"[]. Rank the passages based on their relevance to the search query: {query}.\n"
            f"{listed}\nSearch Query: {query}.\nRank the {count} passages above based on their "
            "relevance to the search query. All the passages should be included and listed using "
            "identifiers, in descending order of relevance. The output format should be [] > [], "
            f"e.g., [{names[1]}] > [{names[0]}], Answer concisely and directly and only respond "
            "with the ranking results, do not say any word or explain."
        )
        system = (
            "You are RankLLM, an intelligent assistant that can rank passages based on their "
            "relevancy to the query"
        )
        return [{"role": "system", "content": system}, {"role": "user", "content": user}]
    turns = [
        "You are RankGPT, an intelligent assistant that can rank passages based on their relevancy "
        "to the query.",
        f"I will provide you with {count} passages, each indicated by number identifier [].\nRank "
        f"the passages based on their relevance to query: {query}.",
        "Okay, please provide the passages.",
    ]
    for place, text in enumerate(passages, 1):
        turns += [f"[{place}] {text}", f"Received passage [{place}]."]
    turns.append(
        f"Search Query: {query}.\nRank the {count} passages above based on their relevance to the "
        "search query. The passages should be listed in descending order using identifiers. The "
        "most relevant passages should be listed first. The output format should be [] > [], e.g., "
        "[1] > [2]. Only response the ranking results, do not say any word or explain."
    )
    roles = ["system", *["user", "assistant"] * (count + 1), "user"]
    return [{"role": role, "content": text} for role, text in zip(roles, turns, strict=True)]
