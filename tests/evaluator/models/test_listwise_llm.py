"""Listwise LLMs: prompts, windows and answers, of a local HTTP server and of a tiny chat model."""

import json
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from xsweep.errors import ConfigError, SetupError
from xsweep.evaluator.models import listwise_llm
from xsweep.evaluator.models.listwise_llm import ask_model, ask_server, parse_ranking, rank_lists
from xsweep.evaluator.prompts import messages_of
from xsweep.evaluator.specs import ListwiseSpec, ModelSpec
from xsweep.orchestrator.rehearsal.models import write_model

MODEL = ModelSpec(id="somebody/chat")
WINDOWS = ListwiseSpec(window=4, stride=2)


def spoken(messages: list[dict[str, str]]) -> dict[int, float]:
    """The number that each passage of a question holds, by its identifier."""
    found = {}
    for message in messages:
        for line in message["content"].splitlines():
            if line.startswith("[") and " passage " in line:
                identifier, _, text = line.partition("] ")
                found[int(identifier[1:])] = float(text.split()[-1])
    return found


def perfect(messages: list[dict[str, str]], _: int = 0) -> str:
    """The answer of a model that knows the order: the largest numbers first."""
    values = spoken(messages)
    return " > ".join(f"[{each}]" for each in sorted(values, key=lambda each: -values[each]))


def perfect_answers(questions: Sequence[list[dict[str, str]]], _: int = 0) -> list[str]:
    return [perfect(each) for each in questions]


def passages(values: list[float]) -> tuple[str, list[str]]:
    return "which is largest?", [f"a passage {value}" for value in values]


@pytest.mark.parametrize(
    ("count", "window", "stride", "expected"),
    [
        (100, 20, 10, [(80 - start, 100 - start) for start in range(0, 90, 10)]),
        (25, 20, 10, [(5, 25), (0, 15)]),
        (20, 20, 10, [(0, 20)]),
        (3, 20, 10, [(0, 3)]),
        (5, 4, 4, [(1, 5)]),
        (9, 4, 2, [(5, 9), (3, 7), (1, 5), (0, 3)]),
    ],
)
def test_windows_move_from_the_end_to_the_beginning(
    count: int, window: int, stride: int, expected: list[tuple[int, int]]
) -> None:
    assert ListwiseSpec(window=window, stride=stride).windows(count) == expected


@given(st.text(alphabet="[]> 0123456789a\n", max_size=60), st.integers(1, 12))
def test_every_answer_gives_each_passage_once(answer: str, count: int) -> None:
    assert sorted(parse_ranking(answer, count, Counter())) == list(range(count))


def test_faults_of_an_answer_are_counted_and_repaired() -> None:
    faults: Counter[str] = Counter()
    assert parse_ranking("Sure! [3] > [1] > [3] > [9] > [0]", 4, faults) == [2, 0, 1, 3]
    assert faults == {"repeated": 1, "out_of_range": 2, "missing": 2}
    assert parse_ranking("I cannot rank these.", 3, faults) == [0, 1, 2]
    assert faults["missing"] == 5
    assert parse_ranking("<think>[1] or [3]?</think> [2] > [1]", 2, faults) == [1, 0]


def test_a_pass_brings_the_best_passages_to_the_top() -> None:
    values = [3.0, 9.0, 1.0, 7.0, 2.0, 8.0, 5.0, 10.0, 4.0, 6.0]
    (once,), _ = rank_lists(MODEL, WINDOWS, [passages(values)], perfect_answers)
    # A window of 4 that moves by 2 carries the 2 best of the whole list to its beginning.
    assert [values[place] for place in once][:2] == [10.0, 9.0]
    more = WINDOWS.model_copy(update={"passes": 5})
    (sorted_list,), counts = rank_lists(MODEL, more, [passages(values)], perfect_answers)
    assert [values[place] for place in sorted_list] == sorted(values, reverse=True)
    assert counts == {"answers": 20, "resumed": 0, "repeated": 0, "out_of_range": 0, "missing": 0}


@pytest.mark.parametrize("order", ["candidates", "reversed", "random"])
def test_the_initial_order_is_a_setting(order: str) -> None:
    settings = WINDOWS.model_copy(update={"order": order, "window": 20})
    found = [
        rank_lists(
            MODEL, settings, [passages([1.0, 2.0, 3.0, 4.0])], lambda asked, _: [""] * len(asked)
        )[0]
        for _ in range(2)
    ]
    assert found[0] == found[1]
    expected = {"candidates": [0, 1, 2, 3], "reversed": [3, 2, 1, 0]}
    assert found[0] == [expected.get(order, found[0][0])]


def test_a_prompt_numbers_cut_passages_and_quotes_no_other_identifier() -> None:
    asked: list[list[dict[str, str]]] = []

    def ask(questions: Sequence[list[dict[str, str]]], _: int) -> list[str]:
        asked.extend(questions)
        return ["[2] > [1]"] * len(questions)

    settings = ListwiseSpec(passage_words=3)
    (order,), _ = rank_lists(MODEL, settings, [("why [1]?", ["one [2] three four", "x"])], ask)
    assert order == [1, 0]
    ((system, user),) = asked
    assert system["content"].startswith("You are RankLLM")
    assert "[1] one (2) three\n[2] x\nSearch Query: why (1)?." in user["content"]
    assert user["content"].startswith("I will provide you with 2 passages, each")
    turns = messages_of("rankgpt", "why?", ["one", "two"])
    assert [turn["role"] for turn in turns] == ["system", *["user", "assistant"] * 3, "user"]
    assert [turn["content"] for turn in turns][3:7] == [
        "[1] one",
        "Received passage [1].",
        "[2] two",
        "Received passage [2].",
    ]


class Api(BaseHTTPRequestHandler):
    """Chat completions; the first answers of `failures` are errors."""

    url: str
    failures: ClassVar[list[int]]
    seen: ClassVar[list[dict]]
    keys: ClassVar[list[str | None]]
    lock = threading.Lock()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            self.seen.append(body)
            self.keys.append(self.headers["Authorization"])
            status = self.failures.pop(0) if self.failures else 200
        answer = {"choices": [{"message": {"content": perfect(body["messages"])}}]}
        self.send_response(status if self.path == "/v1/chat/completions" else 404)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def api() -> Iterator[type[Api]]:
    class Fresh(Api):
        pass

    Fresh.failures, Fresh.seen, Fresh.keys = [], [], []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Fresh)
    Fresh.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield Fresh
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_server_is_asked_again_after_an_error_and_with_the_key_of_the_environment(
    api, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    monkeypatch.setattr(listwise_llm, "BACKOFF_S", 0)
    api.failures += [503, 429]
    settings = WINDOWS.model_copy(update={"server": api.url, "concurrency": 3})
    lists = [passages([float(n), 9.0, float(-n)]) for n in range(5)]
    orders, counts = rank_lists(
        MODEL, settings, lists, ask_server("somebody/chat", settings), [tmp_path]
    )
    assert orders == [[1, 0, 2]] * 5
    assert counts["answers"] == 5
    assert len(api.seen) == 7
    assert {(each["model"], each["temperature"]) for each in api.seen} == {("somebody/chat", 0)}
    assert set(api.keys) == {"Bearer secret-key"}
    assert "secret" not in (tmp_path / "answers.jsonl").read_text()


def test_a_refused_question_is_a_wrong_setting_and_a_broken_server_an_outage(
    api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listwise_llm, "BACKOFF_S", 0)
    settings = WINDOWS.model_copy(update={"server": api.url})
    for failures, error, message in (
        ([401], ConfigError, r"/v1/chat/completions gives no answer: 401"),
        ([500] * 7, SetupError, "gives no answer: .*too many 500"),
    ):
        api.failures[:] = failures
        with pytest.raises(error, match=message):
            rank_lists(MODEL, settings, [passages([1.0, 2.0])], ask_server("a/b", settings))


def test_a_killed_job_resumes_at_its_last_window(tmp_path: Path) -> None:
    lists = [
        passages([float(n % 7) + n / 100 for n in range(start, start + 9)]) for start in (0, 9)
    ]
    asked = Counter[str]()

    def ask(questions: Sequence[list[dict[str, str]]], _: int = 0) -> list[str]:
        asked["all"] += len(questions)
        if asked["all"] == 6:
            raise InterruptedError
        return perfect_answers(questions)

    first, second = tmp_path / "first", tmp_path / "second"
    with pytest.raises(InterruptedError):
        rank_lists(MODEL, WINDOWS, lists, ask, [first])
    with (first / "answers.jsonl").open("a") as file:
        file.write('["cut off')
    orders, counts = rank_lists(MODEL, WINDOWS, lists, ask, [second, first])
    assert orders == rank_lists(MODEL, WINDOWS, lists, perfect_answers)[0]
    assert (counts["answers"], counts["resumed"]) == (8, 4)
    assert asked["all"] == 2 + 8


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat") / "model"
    write_model(folder, "somebody/chat", family="qwen", head="next")
    return folder


def test_a_local_chat_model_answers_as_it_generates(chat: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = torch.device("cpu")
    ask = ask_model(ModelSpec(folder=str(chat)), "rankzephyr", torch.float32, device)
    messages = messages_of("rankzephyr", "what?", ["one", "two"])
    tokenizer = AutoTokenizer.from_pretrained(chat)
    text = "".join(f"{message['content']}\n" for message in messages)
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    plain = AutoModelForCausalLM.from_pretrained(chat).eval()
    with torch.inference_mode():
        for _ in range(8):
            best = plain(ids).logits[:, -1:].argmax(-1)
            ids = torch.cat((ids, best), dim=1)
    length = len(tokenizer(text)["input_ids"])
    expected = tokenizer.decode(ids[0, length:], skip_special_tokens=True)
    longer = messages_of("rankzephyr", "what is it?", ["three", "four four", "five"])
    assert ask([messages], 8) == [expected]
    assert ask([messages, longer], 8) == [expected, *ask([longer], 8)]
    with pytest.raises(ConfigError, match="lower window or passage_words"):
        ask([messages_of("rankzephyr", "what?", ["word " * 5000, "two"])], 8)


def test_first_ranks_by_the_logits_of_the_letters_behind_the_bracket(chat: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec, device = ModelSpec(folder=str(chat)), torch.device("cpu")
    settings = ListwiseSpec(prompt="first", window=4, stride=2, concurrency=2)
    ask = ask_model(spec, "first", torch.float32, device)
    tokenizer = AutoTokenizer.from_pretrained(chat)
    plain = AutoModelForCausalLM.from_pretrained(chat).eval()
    letters = [tokenizer(f"[{letter}")["input_ids"][-1] for letter in "ABC"]
    asked = [
        messages_of("first", query, texts)
        for query, texts in (("what?", ["one", "two"]), ("where is it?", ["three 3", "four", "5"]))
    ]
    assert "each indicated by an alphabetical identifier []." in asked[0][1]["content"]
    assert "[A] one\n[B] two\nSearch Query" in asked[0][1]["content"]
    for messages, count, answer in zip(asked, (2, 3), ask(asked, 99), strict=True):
        text = "".join(f"{message['content']}\n" for message in messages) + "["
        with torch.inference_mode():
            logits = plain(**tokenizer(text, return_tensors="pt")).logits[0, -1, letters[:count]]
        order = (logits.argsort(descending=True) + 1).tolist()
        assert answer == " > ".join(f"[{place}]" for place in order)
    lists = [passages([float(n + 3 * at) for n in range(7 - at)]) for at in range(3)]
    together, counts = rank_lists(spec, settings, lists, ask)
    assert counts == {"answers": 3 + 2 + 2, "resumed": 0} | dict.fromkeys(
        ("repeated", "out_of_range", "missing"), 0
    )
    alone = settings.model_copy(update={"concurrency": 1})
    assert together == rank_lists(spec, alone, lists, ask)[0]
    assert "why (A)? [1]" in str(_first_question(settings, "why [A]? [1]"))
    for wrong in ({"server": "http://a/v1"}, {"window": 27}):
        with pytest.raises(ValueError, match="of a model here, of at most 26 letters"):
            ListwiseSpec(prompt="first", **wrong)


def _first_question(settings: ListwiseSpec, query: str) -> list[dict[str, str]]:
    """The first question that is asked about a query."""
    seen: list[list[dict[str, str]]] = []

    def ask(questions: Sequence[list[dict[str, str]]], _: int) -> list[str]:
        seen.extend(questions)
        return ["[1] > [2]"]

    rank_lists(MODEL, settings, [(query, ["one", "two"])], ask)
    return seen[0]


def test_a_batch_that_memory_does_not_hold_is_halved(
    chat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import GenerationMixin

    generate, sizes = GenerationMixin.generate, []

    def small(self, input_ids, **settings):
        sizes.append(len(input_ids))
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError
        return generate(self, input_ids=input_ids, **settings)

    monkeypatch.setattr(GenerationMixin, "generate", small)
    ask = ask_model(ModelSpec(folder=str(chat)), "rankzephyr", torch.float32, torch.device("cpu"))
    asked = [messages_of("rankzephyr", "what?", ["one " * n, "two"]) for n in range(1, 6)]
    expected = [ask([each], 3)[0] for each in asked]
    sizes.clear()
    assert ask(asked, 3) == expected
    assert sizes == [5, 2, 3, 1, 2]


def test_a_teach_job_writes_a_run_that_others_can_read(api, tmp_path: Path) -> None:
    collection = tiny.write_collection(tmp_path / "mine", queries=3, documents=20)
    documents = tmp_path / "mine" / "documents.tsv"
    lines = documents.read_text().splitlines()
    documents.write_text("".join(f"{line} passage {n}\n" for n, line in enumerate(lines)))
    listwise = {"window": 4, "stride": 2, "server": api.url, "passes": 6}
    model = {"type": "listwise_llm", "models": [{"id": "a/b"}], "listwise": listwise}
    for run in tiny.teach_and_evaluate(tmp_path, collection, model, depth=6):
        for ranked in run.values():
            numbers = [int(doc[1:]) for doc in ranked]
            assert numbers == sorted(numbers, reverse=True)
    summary = json.loads((tmp_path / "teach" / "summary.json").read_text())
    assert summary["answers"]["missing"] == 0
    assert summary["precision"] == "unknown", "the server chooses it"
    assert summary["answers"]["answers"] > 3
