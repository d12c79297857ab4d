"""Hosts on one machine: namespaces with address, name, processes and `/tmp/ray` of their own.

Everything lives in an outer namespace that ends with this program, however that ends: no bridge,
mount or process is left behind. A host is cut off by taking its cable's other end down.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

NETWORK = "10.231.0"
OUTSIDE = f"{NETWORK}.1"
INSIDE = "XSWEEP_CLUSTER_INSIDE"
"""Set inside: the folder for all that the test writes."""
TOOLS = ("ip", "unshare", "nsenter", "setpriv", "mount")
APART = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
PR_SET_PDEATHSIG = 1


def enter(module: str) -> None:
    """Go on as `python -m module` inside the outer namespace; returns only there.

    Exits with code 3 and the reason where this machine does not permit namespaces.
    """
    if os.environ.get(INSIDE):
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", "hosts", "type", "bridge")
        run("ip", "addr", "add", f"{OUTSIDE}/24", "dev", "hosts")
        run("ip", "link", "set", "hosts", "up")
        return
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing:
        sys.exit(_refuse(f"this machine has no {', '.join(missing)} (iproute2, util-linux)"))
    script = "ip link add probe type bridge && mount -t tmpfs tmpfs /mnt"
    probe = subprocess.run([*APART, "sh", "-c", script], capture_output=True, text=True)
    if probe.returncode:
        sys.exit(_refuse(f"no namespaces here ({probe.stderr.strip()}): try as root"))
    folder = tempfile.mkdtemp(prefix="xsweep-cluster-")
    process = subprocess.Popen(
        [*APART, sys.executable, "-m", module, *sys.argv[1:]],
        env=os.environ | {INSIDE: folder},
        preexec_fn=die_with_parent,
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: process.kill())
    code = process.wait()
    shutil.rmtree(folder, ignore_errors=True)
    sys.exit(code)


def _refuse(reason: str) -> int:
    print(f"the cluster test was NOT run: {reason}", file=sys.stderr)
    return 3


def die_with_parent() -> None:
    """For a child before it becomes its program: the kernel ends it when this process ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def run(*command: str) -> None:
    """A command that must not fail."""
    subprocess.run(command, check=True, capture_output=True)


class Host:
    """One host; ending its first process ends all that it runs."""

    def __init__(self, name: str, number: int, folder: Path) -> None:
        self.name, self.address = name, f"{NETWORK}.{number}"
        self.folder = folder / name
        (self.folder / "ray").mkdir(parents=True)
        Path("/tmp/ray").mkdir(exist_ok=True)
        script = (
            f"hostname {name}; mount --bind {self.folder}/ray /tmp/ray; echo up; exec sleep inf"
        )
        self._holder = subprocess.Popen(
            [*APART, "--uts", "sh", "-c", script],
            stdout=subprocess.PIPE,
            preexec_fn=die_with_parent,
        )
        assert self._holder.stdout
        self._holder.stdout.readline()
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children")
        self._first = children.read_text().split()[0]
        run("ip", "link", "add", name, "type", "veth", "peer", "eth0", "netns", self._first)
        run("ip", "link", "set", name, "master", "hosts", "up")
        for command in (
            "link set lo up",
            "link set eth0 up",
            f"addr add {self.address}/24 dev eth0",
            f"route add default via {OUTSIDE}",
        ):
            run(*self.inside("ip", *command.split()))

    def inside(self, *command: str) -> list[str]:
        """The command as one that runs on this host."""
        return ["nsenter", "-t", self._first, "-n", "-m", "-u", "-p", *command]

    def cut(self) -> None:
        """Take the cable out: packets vanish, nobody is told."""
        run("ip", "link", "set", self.name, "down")

    def mend(self) -> None:
        """Put the cable back."""
        run("ip", "link", "set", self.name, "up")

    def processes(self) -> list[int]:
        """Numbers, as this program sees them, of what runs on the host."""
        mine = Path(f"/proc/{self._first}/ns/pid").readlink()
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and (entry / "ns/pid").readlink() == mine:
                    found.append(int(entry.name))
            except OSError:
                continue  # it has just ended
        return [pid for pid in found if str(pid) != self._first]

    def crash(self) -> None:
        """Kill everything that runs here at once, as a power cut does; the cable stays."""
        for _ in range(3):  # what is being forked meanwhile is caught the next time
            for pid in self.processes():
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
