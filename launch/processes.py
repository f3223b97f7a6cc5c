"""One run by several processes: the flags that say which one this is, their start together, and their end together.

    --coordinator=HOST:PORT --processes=N --process=I     the same on every host but for I, from 0; process 0 is at HOST
    --distributed                                         all three found from SLURM, Open MPI, or a TPU pod

On a TPU pod that names its hosts (``TPU_WORKER_HOSTNAMES``) neither is needed. Imports no JAX until they start.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

import command_line
from absl import flags

from posttrain_jax.errors import UserError
from posttrain_jax.run.watch import Listener, Watch, connect

GATHER = 300  # seconds for all processes to come
CONNECT = 30  # seconds to connect, once they have come
JAX_SILENCE = 50  # seconds after which JAX itself ends a run; run/watch.py is faster
PORT = 8476


def define(values: flags.FlagValues) -> None:
    """The flags of an entry point that several processes may run together."""
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, when several run this", flag_values=values)
    flags.DEFINE_integer("processes", None, "how many run this together", flag_values=values)
    flags.DEFINE_integer("process", None, "which one this is, from 0", flag_values=values)
    flags.DEFINE_boolean("distributed", False, "find those three from SLURM, Open MPI or a TPU pod", flag_values=values)


def problems(values: flags.FlagValues, environment: Mapping[str, str] = os.environ) -> list[str]:
    """A sentence for each mistake in the flags."""
    names = ("coordinator", "processes", "process")
    given = [name for name in names if values[name].value is not None]
    if values.distributed and given:
        return [f"--distributed finds --{given[0]} by itself: leave one of the two out"]
    if values.distributed and not _cluster(environment):
        return [
            "--distributed: no SLURM step, Open MPI job or TPU pod is seen here; the nearest is"
            f" --coordinator=HOST:{PORT} --processes=N --process=I"
        ]
    found = []
    if given:
        examples = {"coordinator": f"localhost:{PORT}", "processes": 2, "process": 0}
        found += [
            f"--{name} is missing, which --{given[0]} needs beside it; for instance --{name}={examples[name]}"
            for name in names
            if name not in given
        ]
    count, number = values.processes, values.process
    if count is not None and count < 1:
        found.append(f"--processes={count}: must be at least 1; the nearest is 1")
    elif count is not None and number is not None and not 0 <= number < count:
        nearest = min(max(number, 0), count - 1)
        found.append(f"--process={number}: must be 0 to {count - 1}, one for each; the nearest is {nearest}")
    if values.coordinator is not None:
        host, _, port = values.coordinator.rpartition(":")
        if not host or not port.isdecimal():
            name = values.coordinator.rstrip(":") if not host or not port else host
            found.append(f"--coordinator={values.coordinator}: expected HOST:PORT; the nearest is {name}:{PORT}")
        elif not 1 <= int(port) <= 65535:
            found.append(f"--coordinator={values.coordinator}: a port is 1 to 65535; the nearest is {host}:65535")
    return found


def together(values: flags.FlagValues, workdir: Path, work: Callable[[], int]) -> int:
    """Does ``work`` in this process, or where there are several, in all of them; its exit code.

    With several, a process that fails ends here and at once, and the others end with `EXIT_PEER_GONE`.

    Raises:
      UserError: with one process as ``work`` does; with several only until they have started.
    """
    if not (values.processes or values.distributed or _pod(os.environ)):
        return work()
    watch = _meet(values, workdir) if values.processes else None
    _start(values)
    watch = watch or _meet_by_jax(workdir)
    try:
        code = command_line.outcome(work, watch.failed)
    except Exception as error:
        watch.wait(JAX_SILENCE if "Gloo" in str(error) else 1)  # if another one's end is to blame, that is the message
        traceback.print_exc()
        watch.failed(f"{type(error).__name__}: {error}")
        code = 1
    if watch.gone:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # at its regular end JAX would wait for the others
    _finish(watch)
    return code


def _meet(values: flags.FlagValues, workdir: Path) -> Watch:
    """All processes that the flags name, connected to process 0 at the coordinator's port, which is free again then."""
    host, _, port = values.coordinator.rpartition(":")
    processes, process = values.processes, values.process
    try:
        if process == 0:
            peers = Listener(host, int(port), "process").accept(processes, GATHER)
        else:
            peers = connect(([host], int(port), "process"), process, GATHER)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"--coordinator={values.coordinator}: process {process} of {processes}: {reason}") from error
    return Watch(process, processes, peers, lambda: _advice(workdir, processes))


def _start(values: flags.FlagValues) -> None:
    """Starts JAX in all processes."""
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM; run/stop.py handles that
    named = {}
    if values.processes:
        named = {
            "coordinator_address": values.coordinator,
            "num_processes": values.processes,
            "process_id": values.process,
            "cluster_detection_method": "deactivate",
        }
    try:
        jax.distributed.initialize(
            **named, initialization_timeout=GATHER, heartbeat_timeout_seconds=JAX_SILENCE, shutdown_timeout_seconds=30
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"JAX could not start in all processes within {GATHER} s ({reason})") from error


def _meet_by_jax(workdir: Path) -> Watch:
    """`_meet` where JAX has found the processes: process 0 tells the others where it listens."""
    import jax

    from posttrain_jax.parallel import exchange

    process, processes = jax.process_index(), jax.process_count()
    listener = Listener() if process == 0 else None
    address = exchange.gather(listener and listener.address)[0]
    peers, problem = {}, None
    try:
        peers = listener.accept(processes, CONNECT) if listener else connect(address, process, CONNECT)
    except OSError as error:
        problem = f"process {process} of {processes} cannot be watched over ({error})"
    found = next(filter(None, exchange.gather(problem)), None)
    if found:
        raise UserError(f"{found}; the ports that process 0 opens must be open to the other hosts")
    return Watch(process, processes, peers, lambda: _advice(workdir, processes))


def _finish(watch: Watch) -> None:
    """All end at one time, so that none takes another's end for its death."""
    import jax
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices("finished")
    watch.leave()
    jax.distributed.shutdown()


def _advice(workdir: Path, processes: int) -> str:
    """What is saved, and what to do."""
    folder = workdir / "checkpoints"
    steps = [int(path.name) for path in folder.iterdir() if path.name.isdecimal()] if folder.is_dir() else []
    saved = f"the run is saved up to step {max(steps)}" if steps else "nothing is saved yet"
    return f"{saved}: start all {processes} again"


def _pod(environment: Mapping[str, str]) -> bool:
    """Whether this is one of several hosts of a TPU pod, and JAX may use TPUs."""
    hosts = [name for name in environment.get("TPU_WORKER_HOSTNAMES", "").split(",") if name]
    return len(hosts) > 1 and environment.get("JAX_PLATFORMS", "tpu").partition(",")[0] in ("", "tpu")


def _cluster(environment: Mapping[str, str]) -> bool:
    """Whether JAX can find the other processes by itself."""
    slurm = all(f"SLURM_{name}" in environment for name in ("JOB_ID", "STEP_NODELIST", "NTASKS", "PROCID", "LOCALID"))
    pod = any(name in environment for name in ("TPU_WORKER_HOSTNAMES", "TPU_ACCELERATOR_TYPE", "TPU_NAME"))
    pod = pod or Path("/dev/accel0").exists() or Path("/dev/vfio/0").exists()
    return slurm or pod or "OMPI_MCA_orte_hnp_uri" in environment
