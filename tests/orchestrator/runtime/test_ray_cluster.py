"""A Ray cluster started and stopped on this machine (some seconds)."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from sessions import lives, session
from waiting import wait_for

from xsweep.errors import SetupError
from xsweep.orchestrator.runtime import ray_cluster
from xsweep.orchestrator.runtime.ray_cluster import LocalCluster, free_port
from xsweep.orchestrator.settings import SECRETS, load_settings

pytestmark = pytest.mark.slow(2)

CONNECT = """
import sys
from pathlib import Path
from xsweep.orchestrator.runtime import ray_cluster
from xsweep.orchestrator.settings import load_settings

ray_cluster.connect(load_settings(), namespace="test")
import ray

print(ray_cluster.running_local(Path(sys.argv[1])).address)
print(ray.is_initialized(), int(ray.cluster_resources()["CPU"]))
"""


NAMES = """
import json
from xsweep.orchestrator.runtime import ray_cluster
from xsweep.orchestrator.settings import load_settings

ray_cluster.connect(load_settings(), namespace="names")
import ray
from ray.util.state import list_actors, list_tasks
from waiting import wait_for
from xsweep.orchestrator.runtime.attempt import start_task
from xsweep.orchestrator.runtime.placement import request_of
from xsweep.orchestrator.runtime.pool import Pool

class Quick:
    def __init__(self, gpus):
        pass
    def run(self, *task):
        return task[0]["name"]
    def meeting_point(self):
        return "here"
    def status(self):
        return {"node": "here", "node_id": ray.get_runtime_context().get_node_id()}

names = ["train L6 s1", "evaluate L6 s1 [news]", "evaluate L6 s1 [law]"]
pool = Pool(Quick)
placement = pool.take("train L6 s1 #1.1", request_of({}), alone=True)
for _ in range(30):
    assert pool.statuses([placement])
for name in names:
    assert ray.get(list(start_task(placement, {"name": name}))) == [name]
names += ["train L3 s1 (rank 0 of 2)", "train L3 s1 (rank 1 of 2)"]
gang = pool.take("train L3 s1 #2.1", request_of({"ranks": 2, "cpus": 0.25}), alone=True)
assert list(start_task(gang, {"name": "train L3 s1"}).values()) == [0, 1]
listed = lambda: {task.name for task in list_tasks() if task.type == "ACTOR_TASK"}
wait_for(lambda: listed().issuperset(names))
print(json.dumps([sorted(listed()), [actor.name for actor in list_actors()]]))
"""


@pytest.fixture
def home(tmp_path):
    yield tmp_path
    ray_cluster.stop_local(tmp_path)


def start(program, home, **environment):
    """Start a Python program with `home` as XSWEEP_HOME."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return subprocess.Popen(
        [sys.executable, "-c", program, str(home)],
        env={**clean, "XSWEEP_HOME": str(home), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def connect_in_a_process(home, program=CONNECT, **environment):
    process = start(program, home, **environment)
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.mark.slow(15)
def test_a_local_cluster_outlives_its_killed_starter_requires_its_token_and_has_no_secrets(home):
    starter = start(CONNECT, home, **dict.fromkeys(SECRETS, "secret"))
    begun = wait_for(lambda: ray_cluster.running_local(home))
    starter.kill()
    starter.communicate()
    assert not begun.up, "the starter was killed before its cluster came up"
    first = connect_in_a_process(home)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith(begun.address)
    assert ray_cluster.running_local(home) == replace(begun, up=True)
    second = connect_in_a_process(home)
    assert second.stdout == first.stdout, "the second process must find the first one's cluster"

    assert stat.S_IMODE((home / "ray-token").stat().st_mode) == 0o600
    local = ray_cluster.running_local(home)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{local.dashboard}/api/jobs/", timeout=30)
    assert refused.value.code in (401, 403)
    # The page itself is public: its dialog sends what a user pastes, and gets a cookie.
    pasted = {"Authorization": f"Bearer {(home / 'ray-token').read_text()}"}
    login = urllib.request.Request(f"{local.dashboard}/api/authenticate", b"", pasted)
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    for place in (f"{local.dashboard}/", login, f"{local.dashboard}/nodes?view=summary"):
        answer = browser.open(place, timeout=30)
    [node] = json.load(answer)["data"]["summary"]
    assert node["mem"][0] > 0, "the dashboard shows the machine's load"

    known = {"RAY_ADDRESS": local.address, "RAY_AUTH_MODE": "token"}
    known |= {"RAY_AUTH_TOKEN_PATH": str(home / "ray-token")}
    shown = connect_in_a_process(home, NAMES, PYTHONPATH=str(Path(__file__).parents[2]), **known)
    assert shown.returncode == 0, shown.stderr
    tasks, actors = json.loads(shown.stdout)
    gang = ["train L3 s1 (rank 0 of 2)", "train L3 s1 (rank 1 of 2)"]
    assert tasks == ["evaluate L6 s1 [law]", "evaluate L6 s1 [news]", *gang, "train L6 s1"]
    assert "train L6 s1 #1.1" in actors, "and no question among the tasks"

    token = home / "another-token"
    token.write_text("f" * 64)
    stranger = connect_in_a_process(home, **known | {"RAY_AUTH_TOKEN_PATH": str(token)})
    assert stranger.returncode == 1
    assert "no Ray cluster answers" in stranger.stderr

    processes = psutil.Process(local.pid).children(recursive=True)
    assert processes
    for process in processes:
        assert not {*SECRETS} & process.environ().keys(), process.name()
        assert "ray.util.client.server" not in process.cmdline(), "its port would be everybody's"

    # Processes that a killed head leaves behind are found, too.
    psutil.Process(begun.pid).kill()
    assert wait_for(lambda: ray_cluster.running_local(home) is None)
    assert session(begun.pid)
    ray_cluster.stop_local(home)
    assert session(begun.pid) == []
    assert not any(map(lives, processes))


CROWDED = """
import os, socket, subprocess, sys, tempfile
from pathlib import Path

listener = socket.create_server(("0.0.0.0", 10001))  # somebody's Ray client server
Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("10002 19998")  # Ray's for its workers
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
os.environ["TMPDIR"] = tempfile.tempdir = sys.argv[1] + "/" + "t" * 90
Path(tempfile.tempdir).mkdir()
for name in ("http_proxy", "https_proxy", "grpc_proxy"):
    os.environ[name] = "http://127.0.0.1:9"

import psutil
from sessions import lives
from xsweep.orchestrator.runtime import ray_cluster
from xsweep.orchestrator.settings import load_settings

settings = load_settings()
ray_cluster.connect(settings, namespace="test")
import ray

print(ray.get(ray.remote(lambda: "computed").remote()), int(ray.cluster_resources()["CPU"]))
local = ray_cluster.running_local(settings.home)
print(Path(local.folder).is_dir())
open_ports = subprocess.run(["ss", "-Hltn"], capture_output=True, text=True, check=True).stdout
print(sorted({line.split()[3].rpartition(":")[0] for line in open_ports.splitlines()}))
processes = psutil.Process(local.pid).children(recursive=True)
ray_cluster.disconnect(settings, stop=True)
print(Path(local.folder).exists(), len(processes) > 5, any(map(lives, processes)))
print(ray_cluster.running_local(settings.home))
"""


@pytest.mark.skipif(
    subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode != 0,
    reason="needs the right to make a network namespace",
)
def test_a_cluster_starts_beside_others_and_leaves_nothing(home):
    """A taken port, a narrow port range, one core, a long TMPDIR, a proxy that does not answer."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    up = 'ip link set lo up && exec "$@"'
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", up, "sh", sys.executable, "-c", CROWDED, str(home)],
        env={**clean, "XSWEEP_HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.splitlines() == [
        "computed 1",
        "True",
        "['0.0.0.0', '127.0.0.1', '[::ffff:127.0.0.1]']",  # the first is our listener
        "False True False",
        "None",
    ], done.stderr[-2000:]


def test_cores_are_those_of_the_allocation(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.setattr(ray_cluster, "CGROUPS", tmp_path)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    assert ray_cluster.allocated_cpus() == 16
    own = Path("/proc/self/cgroup").read_text().rpartition("::")[2].strip("/\n")
    (tmp_path / own).mkdir(parents=True, exist_ok=True)
    (tmp_path / own / "cpu.max").write_text("max 100000\n")
    assert ray_cluster.allocated_cpus() == 16
    (tmp_path / own / "cpu.max").write_text("250000 100000\n")
    assert ray_cluster.allocated_cpus() == 2
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert ray_cluster.allocated_cpus() == 1


def test_a_temporary_folder_that_cannot_be_written_is_refused_by_name(monkeypatch, tmp_path):
    monkeypatch.setattr(ray_cluster.tempfile, "tempdir", "/proc")
    with pytest.raises(SetupError, match=r"^/proc cannot be written .*: set TMPDIR to a folder"):
        ray_cluster.temporary_folder()


def test_a_start_that_fails_reports_rays_own_error(monkeypatch, home):
    monkeypatch.setattr(ray_cluster, "node_options", lambda ports: ["--min-worker-port", "5"])
    with pytest.raises(SetupError, match=r"Ray did not start \(ValueError: .*\); its output"):
        ray_cluster.ensure_local(home)


def test_a_cluster_is_reached_without_a_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "example.org")
    ray_cluster._reach_without_proxy("ray://head:10001")
    assert os.environ["no_proxy"] == "example.org,localhost,127.0.0.1,head"
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"]


BEGIN_AND_DIE = """
import os
from pathlib import Path
from xsweep.orchestrator.runtime import ray_cluster
from xsweep.orchestrator.settings import load_settings

def die(home, local):
    print(local.pid, local.folder, flush=True)
    os.kill(os.getpid(), 9)

ray_cluster._record = die
ray_cluster.ensure_local(load_settings().home)
"""


def test_a_starter_that_is_killed_before_it_has_recorded_its_cluster_leaves_none(home):
    starter = start(BEGIN_AND_DIE, home)
    out, _ = starter.communicate(timeout=120)
    assert starter.returncode == -signal.SIGKILL
    pid, folder = out.split()
    wait_for(lambda: not session(int(pid)))
    assert not Path(folder).exists()
    assert (home / "logs" / "ray.log").read_text() == "", "Ray itself never began"


def test_a_cluster_that_does_not_come_up_is_replaced(monkeypatch, home):
    monkeypatch.setattr(ray_cluster, "START_TIMEOUT_S", 0.0)
    with pytest.raises(SetupError, match=r"Ray did not start .*; its output is in .*ray\.log"):
        ray_cluster.ensure_local(home)
    assert ray_cluster.running_local(home) is None
    begun = start(CONNECT, home)
    first = wait_for(lambda: ray_cluster.running_local(home))
    begun.kill()
    begun.communicate()
    with pytest.raises(SetupError, match="Ray did not start"):
        ray_cluster.ensure_local(home)
    assert session(first.pid) == []


def test_a_free_port_is_in_use_by_nobody_and_given_to_no_connection_or_worker(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port()))
        port, other = taken.getsockname()[1], free_port()
        given = other - 1
        draws = iter([port - 20_000, given - 20_000, other - 20_000])
        monkeypatch.setattr(ray_cluster.secrets, "randbelow", lambda most: next(draws))
        assert free_port([given]) == other, (
            "the first is in use, the second given to another server"
        )
    first, _ = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    assert int(first) >= 20_000 + 12_000


@pytest.fixture
def group():
    """A living process in a session whose leader has ended, and the leader's number."""
    script = "sleep 600 & echo $!"
    leader = subprocess.Popen(
        ["sh", "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    member = psutil.Process(int(leader.stdout.readline()))
    leader.wait()
    yield leader.pid, member
    with suppress(psutil.NoSuchProcess):
        member.kill()


def record(home, pid, **changes):
    local = LocalCluster("a", "b", ray_cluster._boot(), pid, 1.0)
    ray_cluster._record(home, replace(local, **changes))


def test_what_a_killed_head_left_is_stopped(tmp_path, group):
    pid, member = group
    record(tmp_path, pid)
    ray_cluster.stop_local(tmp_path)
    assert not lives(member)


def test_a_pid_of_another_process_is_not_our_cluster(tmp_path):
    record(tmp_path, os.getpid())
    assert ray_cluster.running_local(tmp_path) is None
    ray_cluster.stop_local(tmp_path)
    assert psutil.Process().is_running()


def test_after_a_reboot_no_process_is_taken_for_our_cluster(tmp_path, group):
    pid, member = group
    record(tmp_path, pid, boot="another boot")
    assert ray_cluster.running_local(tmp_path) is None
    ray_cluster.stop_local(tmp_path)
    assert lives(member)


def test_hosts_that_share_a_home_keep_their_own_clusters(tmp_path, group, monkeypatch):
    pid, member = group
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(socket, "gethostname", lambda: "elsewhere")
        record(tmp_path, pid)
        assert ray_cluster._recorded(tmp_path).pid == pid
    assert ray_cluster.running_local(tmp_path) is None
    ray_cluster.stop_local(tmp_path)
    assert lives(member)
    assert [path.name for path in tmp_path.iterdir()] == ["ray-elsewhere.json"]


@pytest.fixture
def nobody():
    """An address where nothing listens, though its port is taken."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


def test_an_address_without_a_cluster_is_refused(monkeypatch, tmp_path, nobody):
    monkeypatch.setenv("XSWEEP_HOME", str(tmp_path))
    with pytest.raises(SetupError, match=f"no Ray cluster answers at {nobody}"):
        ray_cluster.connect(load_settings(ray_address=nobody), namespace="test")


def test_a_server_that_is_no_ray_head_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("XSWEEP_HOME", str(tmp_path))
    monkeypatch.setattr(ray_cluster, "ANSWER_S", 1.0)
    monkeypatch.setattr(ray_cluster, "_has_a_node", lambda: True)
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        address = f"127.0.0.1:{somebody.getsockname()[1]}"
        with pytest.raises(SetupError, match=f"the server at {address} is not a Ray head"):
            ray_cluster.connect(load_settings(ray_address=address), namespace="test")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("Version mismatch: Ray: 2.59.0 here\n  Ray: 2.60.0"), "has another version"),
        (RuntimeError("Unauthenticated: Invalid or missing auth token"), "refuses this token"),
        (ConnectionError("ran out of time"), r"answers at host:6379 \(ran out of time\)"),
    ],
)
def test_an_error_of_rays_is_reported_with_a_remedy(error, words):
    import re

    assert re.search(words, ray_cluster.explain("host:6379", error))


def test_a_machine_without_a_node_of_the_cluster_is_refused_with_the_command_to_start_one(
    monkeypatch, tmp_path
):
    monkeypatch.setenv("XSWEEP_HOME", str(tmp_path))
    monkeypatch.setattr(psutil, "process_iter", lambda attributes: iter(()))
    monkeypatch.setattr(ray_cluster, "NODE_START_S", 0)
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        address = f"127.0.0.1:{somebody.getsockname()[1]}"
        with pytest.raises(SetupError, match="no Ray node runs on this machine"):
            ray_cluster.connect(load_settings(ray_address=address), namespace="test")


def test_a_node_that_starts_after_its_head_is_awaited(monkeypatch, tmp_path):
    monkeypatch.setenv("XSWEEP_HOME", str(tmp_path))
    monkeypatch.setattr(ray_cluster, "ANSWER_S", 1.0)
    looks = iter([[], [], [SimpleNamespace(info={"name": "raylet"})]])
    monkeypatch.setattr(psutil, "process_iter", lambda attributes: iter(next(looks)))
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        address = f"127.0.0.1:{somebody.getsockname()[1]}"
        with pytest.raises(SetupError, match="is not a Ray head"):
            ray_cluster.connect(load_settings(ray_address=address), namespace="test")
    assert list(looks) == []


WATCH = """
import logging, sys, threading
from xsweep.orchestrator.runtime import ray_cluster

logging.basicConfig(format="%(message)s")
ray_cluster.AWAY_S, ray_cluster.ANSWER_S = 0.2, 0.1
ray_cluster.exit_if_head_lost(sys.argv[1])
threading.Event().wait(60)
"""


def test_a_controller_exits_with_a_message_when_the_head_stays_away(nobody):
    command = [sys.executable, "-c", WATCH, nobody]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert done.returncode == SetupError.exit_code
    assert f"no answer from Ray's head at {nobody}" in done.stderr
