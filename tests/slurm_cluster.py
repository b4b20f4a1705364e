"""A Slurm of this machine alone, all of it in a folder: munged, slurmctld and a slurmd for each of three nodes."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess

from runtime_jobs import wait_until

COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "sinfo", "scontrol", "scancel", "srun")


def why_not():
    """Why there can be no such cluster here; empty if there can."""
    if missing := [name for name in COMMANDS if _path(name) is None]:
        return f"{', '.join(missing)} not installed (Debian: slurm-wlm, munge)"
    return "" if os.geteuid() == 0 else "a Slurm of one's own wants root"


class Cluster:
    """Three nodes of two CPUs each; the first has the name of this machine, so that ranks find each other there."""

    def __init__(self, folder):
        self.folder, self.processes = folder, {}
        folder.mkdir()
        folder.chmod(0o755)
        self.host = socket.gethostname().split(".")[0]
        self.nodes = (self.host, "second", "third")
        self.conf = folder / "slurm.conf"
        self._write()

    def up(self):
        munge = self.folder / "munge"
        self._begin(
            "munged", "-F", "-f", f"--socket={munge}/socket", f"--key-file={munge}/key", f"--log-file={munge}/log",
            f"--pid-file={munge}/pid", f"--seed-file={munge}/seed", "--num-threads=2",
        )  # fmt: skip
        wait_until(lambda: (munge / "socket").exists())
        self._begin("slurmctld", "-D")
        for name in self.nodes:
            self.node_up(name)
        wait_until(self.idle)

    def idle(self):
        """Whether all nodes are up, and nothing runs."""
        assert [name for name, process in self.processes.items() if process.poll() is not None] == []
        return self.said("sinfo", "-h", "-p", "all", "-N", "-o", "%t").split() == ["idle"] * len(self.nodes)

    def node_up(self, name):
        self._begin("slurmd", "-D", "-N", name, called=name)

    def node_dies(self, name):
        """Its slurmd only: what it has started lives on, as on a node that cannot be reached."""
        self.processes[name].kill()
        self.processes[name].wait()

    def down(self):
        self.said("scancel", "--user=root", "--signal=KILL", "--full")
        self.said("scancel", "--user=root")
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not self.said("squeue", "-h", "-o", "%i"), seconds=15)
        for process in reversed(self.processes.values()):
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pid in self._left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def said(self, *command):
        """What a command of Slurm's says; nothing if it fails."""
        environment = {**os.environ, "SLURM_CONF": str(self.conf)}
        return subprocess.run(command, env=environment, capture_output=True, text=True).stdout

    def _begin(self, *command, called=None):
        log = open(self.folder / f"{called or command[0]}.out", "ab")  # noqa: SIM115
        path = _path(command[0])
        assert path is not None
        self.processes[called or command[0]] = subprocess.Popen(
            [path, *command[1:]],
            env={**os.environ, "SLURM_CONF": str(self.conf)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        log.close()

    def _left(self):
        """What has this cluster's configuration in its environment and lives yet: the steps of nodes that died."""
        found = []
        mark = f"SLURM_CONF={self.conf}".encode()
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError), open(f"/proc/{name}/environ", "rb") as file:
                if mark in file.read().split(b"\0") and int(name) != os.getpid():
                    found.append(int(name))
        return found

    def _write(self):
        munge = self.folder / "munge"
        munge.mkdir(mode=0o755)
        (munge / "key").write_bytes(secrets.token_bytes(128))
        (munge / "key").chmod(0o600)
        (self.folder / "state").mkdir()
        ports = _ports(1 + len(self.nodes))
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={self.host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=2000"
            for name, port in zip(self.nodes, ports[1:], strict=True)
        )
        # cred_expire is how long a job that is put back waits at least: two minutes unless told.
        self.conf.write_text(f"""
ClusterName=here
SlurmctldHost={self.host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={munge}/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={self.folder}/state
SlurmdSpoolDir={self.folder}/spool.%n
SlurmctldPidFile={self.folder}/slurmctld.pid
SlurmdPidFile={self.folder}/slurmd.%n.pid
SlurmctldLogFile={self.folder}/slurmctld.log
SlurmdLogFile={self.folder}/slurmd.%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2,batch_sched_delay=0
PriorityType=priority/basic
ReturnToService=2
SlurmdTimeout=5
KillWait=3
MpiDefault=none
SwitchType=switch/none
DefMemPerCPU=100
{nodes}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
PartitionName=all Nodes=ALL Default=YES State=UP MaxTime=INFINITE GraceTime=20
PartitionName=urgent Nodes=ALL PriorityTier=10 State=UP MaxTime=INFINITE
""")


def _path(name):
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))


def _ports(count):
    with contextlib.ExitStack() as doors:
        return [doors.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(count)]
