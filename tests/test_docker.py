"""What containers would do: the entry point's roles, and the files that name them."""

import os
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

DOCKER = Path(__file__).resolve().parent.parent / "docker"
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
