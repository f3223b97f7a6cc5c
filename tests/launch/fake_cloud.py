"""Stands in for gcloud, xpk, kubectl, SLURM, uv and pip: ``fake_cloud.py PROGRAM ARGUMENTS…``, installing nothing.

It takes only what the documentation of each command lists (Google Cloud SDK 528, xpk 1.16, SLURM 22.05), records every
call, and acts: ssh and scp reach workers that are folders, a queued resource walks through states, sbatch runs its job.

In the folder $FAKE_CLOUD: calls.jsonl; resources.json (name -> states still to come and nodes); worker-NODE-INDEX/, the
home directories; states.json, a list of lists: what each new queued resource walks through; codes.json: the exit
codes of each process's starts, where "hang" is one that waits for SIGTERM and "deaf" one that ignores it.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(os.environ["FAKE_CLOUD"])
WORKERS = 2  # of each slice
WHERE = {"--zone", "--project"}
SSH = {"--node", "--worker", "--batch-size", "--command", "--output-directory", "--ssh-key-file", "--ssh-flag"} | WHERE
# command -> flags that must be there, flags that may be, flags without a value, number of words beside them
GCLOUD = {
    "create": (
        {"--zone", "--accelerator-type", "--runtime-version"},
        {"--node-id", "--node-count", "--node-prefix", "--network", "--subnetwork", "--labels", "--service-account"},
        {"--async", "--spot", "--reserved", "--guaranteed", "--internal-ips"},
        1,
    ),
    "list": ({"--zone", "--format"}, {"--filter", "--limit", "--sort-by"}, {"--uri"}, 0),
    "describe": ({"--zone"}, {"--format"}, set(), 1),
    "delete": ({"--zone", "--quiet"}, set(), {"--async", "--force", "--quiet"}, 1),
    "ssh": ({"--zone", "--command"}, SSH, {"--plain", "--internal-ip", "--tunnel-through-iap"}, 1),
    "scp": ({"--zone"}, SSH - {"--command"}, {"--recurse", "--compress", "--internal-ip"}, 2),
}
SIZE = {"--cluster", "--tpu-type"}
XPK = {
    "cluster create": (SIZE, {"--num-slices", "--reservation"}, {"--spot", "--on-demand", "--flex", "--force"}, 0),
    "cluster delete": ({"--cluster"}, set(), {"--force"}, 0),
    "workload list": ({"--cluster"}, {"--filter-by-status", "--filter-by-job"}, set(), 0),
    "workload delete": ({"--cluster", "--workload"}, set(), {"--force"}, 0),
    "workload create": (
        SIZE | {"--workload", "--command"},
        {"--num-slices", "--docker-image", "--base-docker-image", "--script-dir", "--max-restarts"}
        | {"--restart-on-exit-codes", "--termination-grace-period-seconds", "--priority"},
        set(),
        0,
    ),
}
KUBECTL = ({"--selector"}, {"--container", "--tail", "--max-log-requests"}, {"--prefix", "--follow"}, 1)
SBATCH = {"--job-name", "--nodes", "--gpus-per-node", "--ntasks-per-node", "--time", "--signal", "--output"}
SBATCH |= {"--open-mode", "--partition", "--account", "--requeue"}


def check(arguments, required, allowed, bare, words):
    """The flags as a dictionary and the words beside them; ends as argument parsers do when something is wrong."""
    given, rest = {}, []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not argument.startswith("--"):
            rest.append(argument)
        elif name not in required | allowed | bare:
            refuse(f"unrecognized arguments: {argument}")
        elif (name in bare) == bool(equals):
            refuse(f"argument {name}: expected {'no' if equals else 'one'} value")
        else:
            given[name] = value
    if required - set(given):
        refuse(f"argument {min(required - set(given))}: must be specified")
    if len(rest) != words:
        refuse(f"{words} words expected, not {rest}")
    return given, rest


def refuse(why):
    print(f"ERROR: {why}", file=sys.stderr)
    sys.exit(2)


def load(name, default):
    path = HERE / name
    return json.loads(path.read_text()) if path.exists() else default


def save(name, value):
    (HERE / name).write_text(json.dumps(value))


def gcloud(arguments):
    if arguments[:3] != ["compute", "tpus", "queued-resources"] or len(arguments) < 4 or arguments[3] not in GCLOUD:
        refuse(f"Invalid choice: {arguments[:4]}")
    verb = arguments[3]
    required, allowed, bare, words = GCLOUD[verb]
    given, rest = check(arguments[4:], required, allowed | WHERE, bare, words)
    resources = load("resources.json", {})
    if verb == "list":
        for name, resource in resources.items():
            state = resource["states"].pop(0) if len(resource["states"]) > 1 else resource["states"][0]
            print(f"{name}\t{state}")
        save("resources.json", resources)
        return 0
    name = rest[-1].partition(":")[0]
    if verb == "create":
        if ("--node-id" in given) == ("--node-count" in given) or {"--spot", "--reserved"} <= set(given):
            refuse("Exactly one of (--node-id | --node-count) must be specified.")
        if name in resources or not load("states.json", []):
            print(f"ERROR: ({verb}) ALREADY_EXISTS or no quota: {name}", file=sys.stderr)
            return 1
        first, *others = load("states.json", [])
        save("states.json", others)
        save("resources.json", {**resources, name: {"states": first, "nodes": int(given.get("--node-count", 1))}})
        return 0
    if name not in resources:
        print(f"ERROR: ({verb}) NOT_FOUND: {name}", file=sys.stderr)
        return 1
    chosen = homes(given, resources[name]["nodes"])
    if verb == "delete":
        if "--force" not in given and resources[name]["states"][0] == "ACTIVE":
            print("ERROR: the queued resource has nodes", file=sys.stderr)
            return 1
        del resources[name]
        save("resources.json", resources)
        for pid in HERE.glob("worker-*/posttrain_jax.pid"):
            subprocess.run(["kill", "-KILL", "--", f"-{pid.read_text().strip()}"], stderr=subprocess.DEVNULL)
        subprocess.run(["rm", "-rf", *HERE.glob("worker-*")])
    if verb == "scp":
        for home in chosen:
            (home / rest[1].partition(":")[2]).write_bytes(Path(rest[0]).read_bytes())
    if verb == "ssh":
        command = " ".join(given["--command"].split(" "))  # as gcloud hands it to ssh, and ssh to the login shell
        codes = [subprocess.run(["bash", "-c", command], cwd=h, env={**os.environ, "HOME": str(h)}) for h in chosen]
        return next((ended.returncode for ended in codes if ended.returncode), 0)
    return 0


def homes(given, nodes):
    """The home directories that --node and --worker choose, 0 of each where not said."""
    chosen = []
    for node in range(nodes):
        for worker in range(WORKERS):
            if given.get("--node", "0") in ("all", str(node)) and given.get("--worker", "0") in ("all", str(worker)):
                chosen.append(HERE / f"worker-{node}-{worker}")
                chosen[-1].mkdir(exist_ok=True)
    return chosen


def xpk(arguments):
    command = " ".join(arguments[:2])
    if command not in XPK:
        refuse(f"invalid choice: {command}")
    required, allowed, bare, words = XPK[command]
    given, _ = check(arguments[2:], required, allowed | WHERE, bare, words)
    if command == "cluster create" and len({"--spot", "--on-demand", "--reservation", "--flex"} & set(given)) != 1:
        refuse("choose one capacity type")
    if command == "workload create":
        if ("--docker-image" in given) and {"--script-dir", "--base-docker-image"} & set(given):
            refuse("--docker-image excludes --base-docker-image")
        # a container's shell runs it, after Kubernetes has read $$ as $
        script = f"({given['--command'].replace('$$', '$')}) & wait $!"
        return subprocess.run(["bash", "-c", script], cwd=given.get("--script-dir", HERE)).returncode
    return 0


def sbatch(arguments):
    script = next(index for index, argument in enumerate(arguments) if not argument.startswith("--"))
    given, _ = check(arguments[:script], {"--job-name"}, SBATCH - {"--requeue"}, {"--requeue"}, 0)
    job = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": os.getcwd(), "FAKE_TASKS": given["--ntasks-per-node"]}
    while True:
        with open(given["--output"], "a") as log:
            ended = subprocess.run(["bash", *arguments[script:]], env={**os.environ, **job}, stdout=log, stderr=log)
        if not load("requeued.json", False):
            return ended.returncode
        save("requeued.json", False)


def srun(arguments):
    own = [argument for argument in arguments if argument.startswith(("--kill", "--wait"))]
    check(own, set(), {"--wait", "--kill-on-bad-exit"}, set(), 0)
    command = [argument for argument in arguments if not argument.startswith(("--kill", "--wait"))]
    tasks = range(int(os.environ["FAKE_TASKS"]))
    return max(subprocess.run(command, env={**os.environ, "SLURM_PROCID": str(task)}).returncode for task in tasks)


def scontrol(arguments):
    if arguments != ["requeue", os.environ["SLURM_JOB_ID"]]:
        refuse(f"invalid: {arguments}")
    save("requeued.json", True)
    return 0


def uv(arguments):
    """``uv venv`` makes a Python that is the trainer below."""
    if arguments[0] == "venv":
        python = Path(arguments[-1]) / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.symlink_to(HERE / "bin" / "python")
        return 0
    return (
        0
        if arguments[:2] == ["pip", "install"] and (Path(arguments[-1].partition("[")[0]) / "setup.py").exists()
        else 1
    )


def sudo(arguments):
    """Notes what the superuser is asked to do, and mounts nothing."""
    with open(HERE / "sudo.jsonl", "a") as asked:
        asked.write(json.dumps(arguments) + "\n")
    return 0


def mountpoint(arguments):
    """Whether the runs' folder has been mounted."""
    return 0 if (HERE / "sudo.jsonl").exists() else 1


def pip(arguments):
    """Takes the one installation that is asked of a container, and does nothing."""
    return 0 if arguments == ["install", "--quiet", "--editable", ".[tpu]"] and Path("setup.py").exists() else 1


def python3(arguments):
    """The system's Python is asked for nothing, since uv is there."""
    return refuse(f"python3 {arguments}")


def python(arguments):
    """launch/train.py in one process: notes its arguments, and ends its n-th start with the n-th code, or the last."""
    me = [Path.home().name, os.environ.get("SLURM_PROCID")]
    notes = HERE / "trained.jsonl"
    earlier = [json.loads(line)["me"] for line in notes.read_text().splitlines()] if notes.exists() else []
    with open(notes, "a") as file:
        file.write(json.dumps({"me": me, "arguments": arguments}) + "\n")
    codes = load("codes.json", [0])
    code = codes[min(earlier.count(me), len(codes) - 1)]
    if code == "hang":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    if code == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print(f"training, to end with {code}", flush=True)
    if code in ("hang", "deaf"):
        time.sleep(60)
    return code


if __name__ == "__main__":
    _, program, *given = sys.argv
    if program not in ("uv", "pip", "python", "python3", "srun", "scontrol", "sudo", "mountpoint"):
        with open(HERE / "calls.jsonl", "a") as calls:
            calls.write(json.dumps([program, *given]) + "\n")
    if program == "kubectl":
        check(given, *KUBECTL)
        sys.exit(0)
    if program in ("squeue", "scancel"):
        check(given, {"--me", "--name"} - {"--me"}, set(), {"--me"}, 0)
        sys.exit(0)
    sys.exit(globals()[program](given))
