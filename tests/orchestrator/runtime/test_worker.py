"""The environment of a worker: its GPUs and its peers."""

import os
import shutil
import socket

import psutil
import pytest
import torch
from tiny import write_collection

from xsweep.evaluator.jobs import run_job
from xsweep.orchestrator.runtime.worker import Worker, interface_of, set_rank


def task(root, kind="train", job_id=1, token=1):
    """An attempt that has neither settings nor inputs."""
    out = root / f"jobs/{kind}/aa/aa/attempt-{token}"
    job = {"job_id": job_id, "token": token, "kind": kind, "name": kind, "spec": {}, "inputs": {}}
    places = {"out": str(out), "log": f"{out}.log", "root": str(root), "remote": None}
    return job | places | {"previous": []}


@pytest.fixture
def environment(monkeypatch):
    """The process's variables, put back afterwards."""
    kept = dict(os.environ)
    yield monkeypatch
    for name in os.environ.keys() - kept.keys():
        del os.environ[name]
    os.environ.update(kept)


def test_a_worker_that_asked_for_no_gpu_sees_none(environment):
    environment.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    Worker(0.5)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1", "Ray selects the GPU that is shared"
    Worker(0)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_memory_of_a_gpu_grows_in_segments_unless_the_user_set_the_allocator(environment):
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        environment.delenv(name, raising=False)
    Worker(1)
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    environment.delenv("PYTORCH_ALLOC_CONF")
    environment.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64")
    Worker(1)
    assert "PYTORCH_ALLOC_CONF" not in os.environ


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_job_that_reserved_a_gpu_does_not_run_on_the_cpu(environment, tmp_path):
    outcome = Worker(0.5).run(task(tmp_path))
    assert (outcome["state"], outcome["failure"]) == ("failed", "INFRA")
    assert outcome["reason"].startswith("this job reserved a GPU, but PyTorch")


def test_a_warm_worker_answers_for_its_latest_attempt_alone(environment, tmp_path):
    worker = Worker(0)
    outcome = worker.run(task(tmp_path, kind="prepare", job_id=7))
    assert outcome["state"] == "failed"
    assert worker.outcome(7, 1) == outcome
    assert worker.outcome(8, 1) is None, "another job, whose first attempt has the same token"
    assert worker.outcome(7, 2) is None
    for attempt, halted in (((8, 1), False), ((7, 1), True)):
        worker.halt(*attempt)
        assert worker._halt.is_set() is halted


def test_memory_that_a_job_freed_is_the_systems_when_it_ends(environment, tmp_path):
    worker, process, kept = Worker(0), psutil.Process(), []

    def work(_):
        blocks = [torch.ones(25_000) for _ in range(2_000)]  # 200 MB in blocks of the heap
        kept.append(torch.ones(25_000))  # after them, so that the heap cannot shrink
        assert process.memory_info().rss > before_bytes + 150e6
        blocks.clear()

    environment.setattr(worker, "_work", work)
    before_bytes = process.memory_info().rss
    outcome = worker.run(task(tmp_path))
    assert outcome["state"] == "finished", outcome
    assert process.memory_info().rss < before_bytes + 50e6


def test_a_rank_gets_torchruns_environment_variables(environment):
    environment.setattr("xsweep.orchestrator.runtime.worker.ray_address", lambda: "127.0.0.1")
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        environment.delenv(name, raising=False)
    set_rank(2, 3, ("10.0.0.7", 4711))
    found = {
        name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    }
    assert found == {
        "RANK": "2",
        "WORLD_SIZE": "3",
        "MASTER_ADDR": "10.0.0.7",
        "MASTER_PORT": "4711",
    }
    assert os.environ["LOCAL_RANK"] == "0", "Ray shows each rank its own GPUs only"
    assert os.environ["GLOO_SOCKET_IFNAME"] == interface_of("127.0.0.1")


def test_the_interface_of_an_address_is_the_one_that_has_it():
    loopback = [
        name
        for name, bound in psutil.net_if_addrs().items()
        if any(each.family == socket.AF_INET and each.address == "127.0.0.1" for each in bound)
    ]
    assert interface_of("127.0.0.1") == loopback[0]
    assert interface_of("192.0.2.250") is None


def test_an_input_that_differs_from_its_manifest_fails_the_attempt(environment, tmp_path):
    root = tmp_path / "store"
    collection = write_collection(tmp_path / "own")
    intact, damaged = (root / f"jobs/prepare/aa/aa/attempt-{number}" for number in (1, 2))
    intact.mkdir(parents=True)
    spec = {"type": "candidates", "collection": collection, "depth": 5}
    run_job("prepare", spec, {}, intact)
    shutil.copytree(intact, damaged)
    content = bytearray((damaged / "candidates.run.gz").read_bytes())
    content[-1] ^= 1
    (damaged / "candidates.run.gz").write_bytes(content)

    def evaluate(candidates, token):
        given = {"spec": {"collection": collection}, "inputs": {"candidates": str(candidates)}}
        return Worker(0).run(task(root, kind="evaluate", token=token) | given)

    assert evaluate(intact, 1)["state"] == "finished"
    outcome = evaluate(damaged, 2)
    assert (outcome["state"], outcome["failure"]) == ("failed", "DATA")
    assert outcome["reason"].startswith(f"{damaged / 'candidates.run.gz'}: damaged")
