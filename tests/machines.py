"""A few machines on this one, to run a Ray cluster on and to lose.

With the right to make namespaces (root, Linux) a machine has a network interface and address of
its own, its own processes, its own /tmp and /dev/shm: nothing is common but the network, the
installed program and one shared folder. Otherwise a machine is a group of processes on this host
with an address in 127.0.0.0/8 and a folder of its own, and what cannot be had is left out.

    with cluster(folder, shared) as machines:
        job = machines.submit("run", "smoke", "--out", str(shared), log=folder / "job.log")
        machines.workers[0].kill()

All processes of a machine end with the block, or with the process that started it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import ray
import witness

REPOSITORY = Path(__file__).parent.parent
RAY = str(Path(sys.executable).parent / "ray")
NAMES = ("head", "worker1", "worker2")
RAYLET = str(Path(ray.__file__).parent / "core" / "src" / "ray" / "raylet" / "raylet")
STARTING_SECONDS = 200.0  # for Ray on one machine; 5 to 10 where nothing else runs
# A machine that is cut off is given up after about 10 s, not 65, so that a test can wait for it.
QUICK_HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
}


@lru_cache(maxsize=1)
def namespaces_can_be_made() -> bool:
    """Whether machines can be told apart by the kernel. $MARIPOSA_MACHINES=processes: no."""
    if os.environ.get("MARIPOSA_MACHINES") == "processes" or not shutil.which("nsenter"):
        return False
    probe = "mount -t tmpfs none /dev/shm && ip link add name probe type bridge"
    command = ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "sh", "-c", probe]
    try:
        return subprocess.run(command, capture_output=True, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


@dataclass
class Machine:
    """One machine: a root process, and all that descends from it.

    Attributes:
        name: ``head`` or ``workerN``.
        address: its IPv4 address.
        disks: a folder of this host for its disks; each boot has a new, empty one.
        shared: the folder that all machines see under the same path.
        network: that it is plugged into.
        more: environment of every process on it, beside its own.
    """

    name: str
    address: str
    disks: Path
    shared: Path
    network: Network
    more: Mapping[str, str]
    boots: int = 0
    _root: subprocess.Popen[str] | None = field(default=None, repr=False)
    _started: list[subprocess.Popen[str]] = field(default_factory=list, repr=False)

    @property
    def temporary(self) -> Path:
        """Its folder for temporary files, as this host sees it."""
        return self.disks / f"{self.name}-{self.boots}"

    @property
    def own_temporary(self) -> str:
        """How the machine itself calls that folder."""
        return "/tmp" if namespaces_can_be_made() else str(self.temporary)

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        own = self.own_temporary
        return {
            **kept,
            "HOME": own,
            "TMPDIR": own,
            "MARIPOSA_CACHE": f"{own}/cache",
            **witness.environment(own, self.name),
            "PYTHONUNBUFFERED": "1",
            **QUICK_HEALTH_CHECKS,
            **self.more,
        }

    def boot(self) -> None:
        """Bring it up, with an empty disk."""
        self.boots += 1
        witness.install(self.temporary)
        if namespaces_can_be_made():
            self._root = _isolated_root(self)
            self.network.connect(self.name, self.address, self._root.pid)

    def witnessed(self, what: str | None = None) -> list[dict[str, Any]]:
        """What `witness` has written on it since its last boot, of that kind or all."""
        return witness.read(self.temporary, what)

    def start(self, *command: str, log: Path | None = None) -> subprocess.Popen[str]:
        """Start a command on it; its output goes into the file, or to the caller."""
        with contextlib.nullcontext(subprocess.PIPE) if log is None else log.open("a") as output:
            process = subprocess.Popen(
                [*self._entrance(), *command],
                env=self.environment,
                cwd=self.temporary,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def run(self, *command: str, timeout: float = 120) -> tuple[int, str]:
        """Run a command on it to its end: its exit code and its output."""
        process = self.start(*command)
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return process.returncode, output

    def processes(self) -> dict[int, str]:
        """Its processes and their command lines, by this host's numbers."""
        ours = [process for process in (self._root, *self._started) if process]
        # The number of one that has ended may be another's by now.
        roots = [process.pid for process in ours if process.poll() is None]
        return {pid: line for pid in _descendants(roots) if (line := _command_line(pid))}

    def find(self, text: str) -> list[int]:
        """Processes whose command line begins with the text, such as ``ray::evaluate``."""
        return sorted(pid for pid, line in self.processes().items() if line.startswith(text))

    def kill(self) -> None:
        """SIGKILL for all of it, as when the power goes: nothing can say goodbye."""
        if self._root is not None:
            self._root.kill()  # takes its child along, the namespace's first process, and that all
            self._root.wait()
            self._root = None
        _kill_all(self.processes)
        for process in self._started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
        self._started.clear()

    def cut_off(self) -> None:
        """Take it off the network; its processes go on. Without namespaces they stand still."""
        if namespaces_can_be_made():
            self.network.run("ip", "link", "set", f"to-{self.name}", "down")
        else:
            _signal_all(self.processes(), signal.SIGSTOP)

    def let_back(self) -> None:
        """Undo `cut_off`. Its raylet, if it was given up meanwhile, learns so and ends."""
        if namespaces_can_be_made():
            self.network.run("ip", "link", "set", f"to-{self.name}", "up")
        else:
            _signal_all(self.processes(), signal.SIGCONT)

    def _entrance(self) -> list[str]:
        if self._root is None:
            return []
        inner = _first_child(self._root.pid)
        enter = ["nsenter", "--target", str(inner), "--mount", "--net", "--pid"]
        return [*enter, "env", "-C", "/tmp"]


class Network:
    """A bridge that the machines are plugged into, in a namespace of its own."""

    def __init__(self) -> None:
        self._root: subprocess.Popen[str] | None = None
        if namespaces_can_be_made():
            script = "ip link add name bridge0 type bridge && ip link set bridge0 up && echo up"
            command = ["unshare", "--net", "sh", "-c", f"{script} && exec sleep infinity"]
            self._root = _tied_to_us(command)

    def run(self, *command: str) -> None:
        assert self._root is not None
        enter = ["nsenter", "--target", str(self._root.pid), "--net"]
        subprocess.run([*enter, *command], check=True, capture_output=True, timeout=20)

    def connect(self, name: str, address: str, pid: int) -> None:
        """A cable from the bridge to the machine whose root process that is."""
        port = f"to-{name}"
        with contextlib.suppress(subprocess.CalledProcessError):  # left of a machine that died
            self.run("ip", "link", "delete", port)
        inner = str(_first_child(pid))
        peer = ["type", "veth", "peer", "name", "eth0", "netns", inner]
        self.run("ip", "link", "add", "name", port, *peer)
        self.run("ip", "link", "set", port, "master", "bridge0", "up")
        own = ["nsenter", "--target", inner, "--net", "ip"]
        for step in (
            ["address", "add", f"{address}/24", "dev", "eth0"],
            ["link", "set", "eth0", "up"],
            ["link", "set", "lo", "up"],
        ):
            subprocess.run([*own, *step], check=True, capture_output=True, timeout=20)

    def close(self) -> None:
        if self._root is not None:
            self._root.kill()
            self._root.wait()


class Cluster:
    """A Ray cluster on a head and its workers, a CPU each.

    Args:
        folder: for the machines' disks.
        shared: the only folder that all of them see.
        environment: more variables for every process.
    """

    def __init__(self, folder: Path, shared: Path, environment: Mapping[str, str]):
        self.folder, self.shared, self.network = folder, shared, Network()
        isolated = namespaces_can_be_made()
        network = "10.77.0" if isolated else "127.77.0"
        self.port, self.dashboard = (6379, 8265) if isolated else (_free_port(), _free_port())
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        more = token | dict(environment)
        self.machines = {
            name: Machine(name, f"{network}.{number}", folder, shared, self.network, more)
            for number, name in enumerate(NAMES, start=1)
        }

    def __iter__(self) -> Iterator[Machine]:
        return iter(self.machines.values())

    @property
    def head(self) -> Machine:
        return self.machines["head"]

    @property
    def workers(self) -> list[Machine]:
        return [self.machines[name] for name in NAMES[1:]]

    def up(self, *names: str) -> None:
        """Boot these machines and start Ray on them, the head first; all of them by default.

        Whatever still runs on them is killed before, and their disks are new.
        """
        wanted = [self.machines[name] for name in names or NAMES]
        for machine in wanted:
            machine.kill()
            machine.boot()
        for together in ([m for m in wanted if m is self.head], wanted):
            starting = [(m, self._start_ray(m)) for m in together if not m.find(RAYLET)]
            for machine, process in starting:
                self._wait_until_started(machine, process)

    def rejoin(self, name: str) -> None:
        """Start Ray again on a machine whose raylet has ended, as its disk and cache are."""
        limit = time.monotonic() + STARTING_SECONDS
        while self.machines[name].find(RAYLET):
            if time.monotonic() > limit:
                raise TimeoutError(f"Ray still runs on {name}")
            time.sleep(0.2)
        machine = self.machines[name]
        self._wait_until_started(machine, self._start_ray(machine))

    def submit(self, *arguments: str, log: Path) -> subprocess.Popen[str]:
        """``ray job submit -- python -m study ARGUMENTS`` on the head; ends as the job does."""
        dashboard = f"http://127.0.0.1:{self.dashboard}"  # on the head's loopback only
        job = shlex.join([RAY, "job", "submit", "--address", dashboard, "--"])
        job += " " + shlex.join([sys.executable, "-m", "study", *arguments])
        # For some seconds after its start a cluster has no agent for jobs yet.
        script = f"for i in $(seq 20); do {job} 2>&1 | tee last.txt; code=$?; "
        script += 'grep -q "No available agent" last.txt || exit $code; sleep 1; done; exit 1'
        return self.head.start("bash", "-o", "pipefail", "-c", script, log=log)

    def down(self) -> None:
        for machine in self:
            machine.kill()
        self.network.close()

    def _start_ray(self, machine: Machine) -> subprocess.Popen[str]:
        options = ["--block", "--num-cpus=1", f"--node-ip-address={machine.address}"]
        options += ["--object-store-memory=200000000", "--disable-usage-stats"]
        options += [f"--temp-dir={machine.own_temporary}/ray"]
        if machine is self.head:
            options += ["--head", f"--port={self.port}"]
            options += ["--dashboard-host=127.0.0.1", f"--dashboard-port={self.dashboard}"]
        else:
            options += [f"--address={self.head.address}:{self.port}"]
        if not namespaces_can_be_made():  # all ports are those of one host
            options += [f"--dashboard-agent-listen-port={_free_port()}"]
            options += [f"--ray-client-server-port={_free_port()}"] * (machine is self.head)
        self._log(machine).unlink(missing_ok=True)
        return machine.start(RAY, "start", *options, log=self._log(machine))

    def _wait_until_started(self, machine: Machine, process: subprocess.Popen[str]) -> None:
        log, limit = self._log(machine), time.monotonic() + STARTING_SECONDS
        while "Ray runtime started" not in log.read_text():
            if time.monotonic() > limit:
                raise TimeoutError(f"no Ray on {machine.name} in time\n{log.read_text()[-3000:]}")
            if process.poll() is not None:  # on a busy machine it gives up after 30 s
                process = self._start_ray(machine)
            time.sleep(0.1)

    def _log(self, machine: Machine) -> Path:
        return self.folder / f"{machine.name}.log"


@contextlib.contextmanager
def cluster(folder: Path, shared: Path, **environment: str) -> Iterator[Cluster]:
    """Machines with Ray on them, for the time of the block."""
    shared.mkdir(parents=True, exist_ok=True)
    machines = Cluster(folder, shared, environment)
    try:
        machines.up()
        yield machines
    finally:
        machines.down()


def _isolated_root(machine: Machine) -> subprocess.Popen[str]:
    """A process whose child is the first of new namespaces, and dies with it."""
    steps = ["set -e", "mount -t tmpfs none /dev/shm", "mount -t sysfs none /sys"]
    seen = (machine.shared, REPOSITORY, Path(sys.prefix), Path(sys.base_prefix))
    for folder in {folder for folder in seen if folder.is_relative_to("/tmp")}:
        place = machine.temporary / folder.relative_to("/tmp")
        steps.append(shlex.join(["mkdir", "-p", str(place)]))
        steps.append(shlex.join(["mount", "--bind", str(folder), str(place)]))
    steps.append(shlex.join(["mount", "--rbind", str(machine.temporary), "/tmp"]))
    # The first process adopts orphans; the kernel buries them where SIGCHLD is ignored.
    wait = "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN); signal.pause()"
    steps += ["echo up", "exec " + shlex.join([sys.executable, "-S", "-c", wait])]
    apart = ["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    return _tied_to_us(["unshare", *apart, "sh", "-c", "\n".join(steps)])


def _tied_to_us(command: list[str]) -> subprocess.Popen[str]:
    """A process that the kernel kills when this thread ends; returns once it has said ``up``."""
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *command], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    if process.stdout.readline() != "up\n":
        raise OSError(f"{shlex.join(command)} has failed")
    return process


def _first_child(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def _descendants(roots: list[int]) -> set[int]:
    """The processes and all that descends from them, by parents as they are now."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            text = stat.read_text()
            parent = int(text[text.rindex(")") + 1 :].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found: set[int] = set()
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        found.add(pid)
        waiting += children.get(pid, [])
    return found


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return ""


def _kill_all(processes: Callable[[], Mapping[int, str]]) -> None:
    for _ in range(10):  # again, for those that were being born
        found = processes()
        if not found:
            return
        _signal_all(found, signal.SIGKILL)
        time.sleep(0.1)


def _signal_all(processes: Mapping[int, str], number: signal.Signals) -> None:
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
