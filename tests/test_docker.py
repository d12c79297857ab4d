"""What containers would do: the entry point's roles, and the files that name them."""

import os
import re
import subprocess
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from xsweep.orchestrator.runtime.process import GRACE_S

PROJECT = Path(__file__).resolve().parent.parent
DOCKER = PROJECT / "docker"
ROLES = {"head", "worker", "controller"}


@pytest.fixture
def entrypoint(tmp_path):
    """Runs the entry point where `ray` and `xsweep` say what they were asked."""
    for program in ("ray", "xsweep"):
        (tmp_path / program).write_text(f'#!/bin/sh\necho {program} "$@"\n')
        (tmp_path / program).chmod(0o755)
    token = tmp_path / "token"
    token.write_text("f" * 64)

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        given = {"RAY_AUTH_TOKEN_PATH": str(token), "RAY_ADDRESS": "head:6379", **environment}
        path = f"{tmp_path}:{os.environ['PATH']}"
        command = [str(DOCKER / "entrypoint.sh"), *arguments]
        return subprocess.run(command, env={"PATH": path, **given}, capture_output=True, text=True)

    return run


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (["head"], ["ray start --head --block --port=6379 --num-cpus=0 --num-gpus=0"]),
        (["worker", "--num-cpus=8"], ["ray start --address=head:6379 --block"]),
        (
            ["controller", "--forever"],
            ["ray start --address=head:6379 --num-cpus=0 --num-gpus=0", "xsweep run --forever"],
        ),
        (["xsweep", "status"], ["xsweep status"]),
    ],
)
def test_each_role_starts_what_it_is(entrypoint, arguments, asked):
    done = entrypoint(*arguments)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(asked)
    assert all(line.startswith(words) for line, words in zip(lines, asked, strict=True))


def test_the_dashboard_stays_on_loopback_unless_told_otherwise(entrypoint):
    assert "--dashboard-host=127.0.0.1" in entrypoint("head").stdout
    assert "--dashboard-host=::" in entrypoint("head", RAY_DASHBOARD_HOST="::").stdout


@pytest.mark.parametrize("role", sorted(ROLES))
def test_no_part_of_a_cluster_starts_without_a_token(entrypoint, role):
    done = entrypoint(role, RAY_AUTH_TOKEN_PATH="")
    assert done.returncode == 3
    assert "anyone who reaches a Ray cluster without a token" in done.stderr
    assert done.stdout == ""


def test_a_worker_whose_driver_is_too_old_for_torch_says_so(entrypoint, tmp_path):
    for program, line in {"nvidia-smi": "", "python3": "echo driver too old >&2; exit 1"}.items():
        (tmp_path / program).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / program).chmod(0o755)
    done = entrypoint("worker")
    assert (done.returncode, done.stdout) == (3, "")
    assert "driver too old\nentrypoint: PyTorch cannot use the GPUs" in done.stderr
    assert "needs an NVIDIA driver of version 580 or newer" in done.stderr
    assert entrypoint("worker", CUDA_VISIBLE_DEVICES="").returncode == 0
    assert entrypoint("head").returncode == 0, "it runs no jobs"


def test_the_driver_that_is_stated_is_that_of_the_pinned_torch():
    """A new torch may have another CUDA: look its driver up, and mend the three files."""
    assert "\ntorch==2.13.0\n" in (PROJECT / "constraints.txt").read_text()
    assert "ARG BASE=nvidia/cuda:13.0." in (DOCKER / "Dockerfile").read_text()
    for file in ("docker/Dockerfile", "docker/entrypoint.sh", "docs/running.md"):
        assert "version 580 or newer" in (PROJECT / file).read_text()


def test_every_installation_has_the_versions_of_one_file():
    installs = {
        line.strip()
        for file in (PROJECT / "Makefile", DOCKER / "Dockerfile", PROJECT / "README.md")
        for line in file.read_text().splitlines()
        if re.search("pip install(?! --no-deps)", line)
    }
    assert len(installs) >= 2
    assert all(re.search(r"(-c|--constraint) constraints\.txt", line) for line in installs)
    pinned = set(re.findall(r"^([\w.-]+)==", (PROJECT / "constraints.txt").read_text(), re.M))
    needed = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.split(r"[\[<>=!~; ]", each)[0].lower().replace("_", "-") for each in needed}
    assert names <= pinned


def test_the_compose_file_stops_the_controller_before_the_workers_in_time_for_checkpoints():
    services = YAML(typ="safe").load(DOCKER / "compose.yaml")["services"]
    assert set(services["controller"]["depends_on"]) == {"database", "head", "worker"}
    assert float(services["controller"]["stop_grace_period"].rstrip("s")) > GRACE_S


def test_each_kubernetes_pod_has_the_environment_that_the_entry_point_would_set():
    """KubeRay starts Ray without it."""
    [cluster] = (
        part
        for part in YAML(typ="safe").load_all(DOCKER / "kuberay.yaml")
        if part["kind"] == "RayCluster"
    )
    script = (DOCKER / "entrypoint.sh").read_text()
    [exported] = re.findall(r"^export (.*)", script, re.M)
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    for group in groups:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        [container] = group["template"]["spec"]["containers"]
        given = {each["name"]: each.get("value") for each in container["env"]}
        assert set(exported.split()) <= set(given)
        assert container["resources"]["limits"] == container["resources"]["requests"]
        mounted = {each["name"] for each in container["volumeMounts"]}
        assert mounted == {each["name"] for each in group["template"]["spec"]["volumes"]}
    assert cluster["spec"]["rayVersion"] == version("ray")


def test_compose_and_kubernetes_name_roles_of_the_entry_point():
    compose = YAML(typ="safe").load(DOCKER / "compose.yaml")
    commands = [s["command"][0] for s in compose["services"].values() if "command" in s]
    assert set(commands) == ROLES
    parts = list(YAML(typ="safe").load_all(DOCKER / "kuberay.yaml"))
    (controller,) = parts[-1]["spec"]["template"]["spec"]["containers"]
    assert controller["args"][0] == "controller"


def test_only_the_controller_knows_the_database():
    services = YAML(typ="safe").load(DOCKER / "compose.yaml")["services"]
    told = {name for name, each in services.items() if "XSWEEP_DB" in each.get("environment", {})}
    assert told == {"controller"}
