"""What goes in and comes out of a sandbox, and what is left of it."""

from __future__ import annotations

import asyncio
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from posttrain_jax.errors import UserError
from posttrain_jax.rewards.sandbox.program import Limits, Program
from posttrain_jax.rewards.sandbox.sandbox import Sandbox, SandboxUnavailable


def descendants() -> set[int]:
    """Processes below this one."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
    found, size = {os.getpid()}, 0
    while size != len(found):
        size = len(found)
        found |= {pid for pid, parent in parents.items() if parent in found}
    return found - {os.getpid()}


def test_input_goes_in_and_both_outputs_and_the_status_come_out(sandbox: Sandbox):
    source = "import sys; print(sys.stdin.read() * 2); print('bad', file=sys.stderr); sys.exit(3)"
    outcome = sandbox.run(Program(source=source, stdin=b"ab"))
    assert (outcome.stdout, outcome.stderr, outcome.status, outcome.ended) == (b"abab\n", b"bad\n", 3, "exit")


def test_input_larger_than_a_pipe_goes_in(sandbox: Sandbox):
    outcome = sandbox.run(Program(source="import sys; print(len(sys.stdin.read()))", stdin=b"x" * 3_000_000))
    assert outcome.stdout == b"3000000\n"


def test_input_that_is_not_read_does_no_harm(sandbox: Sandbox):
    assert sandbox.run(Program(source="print(1)", stdin=b"x" * 3_000_000)).stdout == b"1\n"


def test_files_are_there_to_import_and_changed_ones_come_back(sandbox: Sandbox):
    source = """import os, folder.given as given
open("new.txt", "w").write(str(given.x)); open("binary", "wb").write(b"\\xff"); os.symlink("/etc/passwd", "link")
os.remove("old.txt")"""
    files = {"folder/given.py": "x = 7", "old.txt": "old"}
    outcome = sandbox.run(Program(source=source, files=files, keep=True))
    assert (outcome.files, outcome.ended) == ({"folder/given.py": "x = 7", "new.txt": "7"}, "exit"), outcome


def test_files_come_back_after_the_time_is_up(sandbox: Sandbox):
    command = ["sh", "-c", "echo kept > file; sleep 100"]
    outcome = sandbox.run(Program(command=command, keep=True, limits=Limits(seconds=0.5)))
    assert (outcome.ended, outcome.status, outcome.files) == ("seconds", None, {"file": "kept\n"})


def test_a_program_that_ends_the_collector_gets_its_files_as_they_were(sandbox: Sandbox):
    source = "import os, signal; open('file', 'w').write('new'); os.kill(os.getppid(), signal.SIGKILL)"
    outcome = sandbox.run(Program(source=source, files={"file": "old"}, keep=True))
    assert outcome.files == {"file": "old"} and outcome.reason


def test_a_folder_that_was_made_unreadable_is_passed_by(sandbox: Sandbox):
    source = (
        "import os; os.makedirs('a/b'); open('a/b/c', 'w').write('c'); os.chmod('a/b', 0); open('d', 'w').write('d')"
    )
    assert sandbox.run(Program(source=source, keep=True)).files == {"d": "d"}


def test_each_limit_is_named_when_it_is_met(sandbox: Sandbox):
    def ended(source: str, **limits) -> str:
        return sandbox.run(Program(source=source, limits=Limits(**limits))).ended

    assert ended("while True: pass", cpu_seconds=1, seconds=60) == "cpu"
    assert ended("import time; time.sleep(100)", seconds=0.5) == "seconds"
    assert ended("while True: print('x' * 1000)", output=2**16) == "output"


def test_output_is_cut_at_its_limit(sandbox: Sandbox):
    outcome = sandbox.run(Program(source="print('x' * 10_000_000)", limits=Limits(output=1000)))
    assert len(outcome.stdout) <= 1000


def test_a_program_that_acts_as_if_it_had_not_run_has_run(sandbox: Sandbox):
    source = "import os, sys; print('bwrap: setting up uid map: Permission denied', file=sys.stderr); os._exit(1)"
    outcome = sandbox.run(Program(source=source))
    assert (outcome.ended, outcome.status) == ("exit", 1)


def test_neither_environment_nor_paths_of_the_host_show_in_process_1(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    source = """for name in ("environ", "cmdline"):
    try: print(open(f"/proc/1/{name}").read())
    except OSError: pass"""
    with Sandbox.open(sandbox.kind, workers=1) as opened:  # type: ignore[arg-type]
        seen = opened.run(Program(source=source)).stdout.decode()
    assert "hf_secret" not in seen
    assert "HOME" not in seen and str(Path(__file__).resolve().parents[3]) not in seen


def test_there_is_no_capability_no_writable_root_and_a_filter(sandbox: Sandbox):
    source = """import os
names = ("CapEff", "CapBnd", "Seccomp:", "NoNew")
for pid in ("1", "self"): print(*[line.split()[1] for line in open(f"/proc/{pid}/status") if line.startswith(names)])
print(os.getuid(), [path for path in ("/", "/dev", "/proc", "/program", "/usr") if not os.statvfs(path).f_flag & 1])"""
    seen = sandbox.run(Program(source=source)).stdout.decode().splitlines()
    none = "0" * 16
    assert seen == [f"{none} {none} 1 2", f"{none} {none} 1 2", "65534 []"]


def test_sandboxes_side_by_side_have_processes_of_their_own(sandbox: Sandbox):
    source = """import os, time
for _ in range(20):
    if not os.fork():
        time.sleep(0.5); os._exit(0)
print("all")"""
    program = Program(source=source, limits=Limits(processes=32))
    with ThreadPoolExecutor(4) as pool:
        assert [outcome.stdout for outcome in pool.map(sandbox.run, [program] * 4)] == [b"all\n"] * 4


def test_what_python_needs_works_under_the_filter(sandbox: Sandbox):
    source = """import asyncio, multiprocessing, subprocess, tempfile, threading
def double(x): return 2 * x
if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(2) as pool: print(pool.map(double, [1, 2]))
    print(subprocess.run(["echo", "sub"], capture_output=True).stdout)
    threading.Thread(target=print, args=("thread",)).start()
    with tempfile.NamedTemporaryFile() as file: file.write(b"x")
    print(asyncio.run(asyncio.sleep(0, "async")))
    exit()"""
    outcome = sandbox.run(Program(source=source))
    assert outcome.stdout.split() == [b"[2,", b"4]", b"b'sub\\n'", b"thread", b"async"], outcome


def test_many_run_at_once_from_asyncio(sandbox: Sandbox):
    async def all_of_them():
        return await asyncio.gather(*(sandbox.start(Program(source=f"print({n})")) for n in range(12)))

    assert [outcome.stdout for outcome in asyncio.run(all_of_them())] == [b"%d\n" % n for n in range(12)]


def test_memory_that_ends_every_process_is_the_programs_own(sandbox: Sandbox):
    source = """import os, time
for _ in range(40):
    if not os.fork():
        x = bytearray(8 << 20); x[::4096] = b"x" * len(x[::4096]); time.sleep(60)
time.sleep(60)"""
    outcome = sandbox.run(Program(source=source, limits=Limits(memory=128 * 2**20)))
    assert (outcome.ended, outcome.status) == ("memory", None), outcome


def test_a_lost_launcher_is_told_and_replaced(sandbox: Sandbox):
    with Sandbox.open(sandbox.kind, workers=1) as opened:  # type: ignore[arg-type]
        before = descendants()
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(opened.run, Program(source="import time; time.sleep(100)"))
            (launcher,) = {worker._process.pid for worker in opened._workers if worker._process}
            while not descendants() - before:
                assert not future.done()
            os.kill(launcher, signal.SIGKILL)
            assert future.result().ended == "infrastructure"
        assert opened.run(Program(source="print(1)")).stdout == b"1\n"


def test_nothing_is_left_of_a_hundred_runs(sandbox: Sandbox):
    source = "import os\nif os.fork(): os._exit(0)\nimport time; time.sleep(60)"
    programs = [Program(source=source, files={"a": "b"}, keep=keep) for keep in (True, False, False)]
    with Sandbox.open(sandbox.kind, workers=2) as opened, ThreadPoolExecutor(2) as pool:  # type: ignore[arg-type]
        list(pool.map(opened.run, programs * 2))
        pids = [worker._process.pid for worker in opened._workers if worker._process]
        descriptors = [len(os.listdir(f"/proc/{pid}/fd")) for pid in [*pids, os.getpid()]]
        processes, temporary = len(descendants()), set(os.listdir("/tmp"))
        list(pool.map(opened.run, programs * 33))
        assert [len(os.listdir(f"/proc/{pid}/fd")) for pid in [*pids, os.getpid()]] == descriptors
        assert len(descendants()) == processes
        assert not {name for name in set(os.listdir("/tmp")) - temporary if "sandbox" in name or "bwrap" in name}
    assert not descendants() & set(pids)
    assert not [group for pid in pids for group in Path("/sys/fs/cgroup").glob(f"*/**/posttrain_jax-{pid}")]


def test_an_argument_that_is_too_long_is_the_programs_fault(sandbox: Sandbox):
    outcome = sandbox.run(Program(command=["echo", "x" * 200_000]))
    assert outcome.ended == "exit" and outcome.status, outcome


def test_text_that_is_no_unicode_is_no_failure_of_the_sandbox(sandbox: Sandbox):
    assert sandbox.run(Program(command=["echo", "a\ud800"], files={"b": "\ud800"})).stdout == b"a?\n"


def test_another_system_than_linux_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(SandboxUnavailable, match="needs Linux; this is darwin"):
        Sandbox.open()


def test_without_bubblewrap_it_fails_with_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxUnavailable, match="no bwrap in PATH; `apt-get install bubblewrap`"):
        Sandbox.open("bubblewrap")


def test_a_bubblewrap_that_is_refused_namespaces_fails_with_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    program = tmp_path / "bwrap"
    program.write_text("#!/bin/sh\necho 'bwrap: setting up uid map: Permission denied' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxUnavailable, match="uid map: Permission denied.*apparmor_restrict_unprivileged_userns=0"):
        Sandbox.open("bubblewrap", workers=1)


def test_a_bubblewrap_that_confines_nothing_is_not_believed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    program = tmp_path / "bwrap"
    program.write_text("#!/bin/sh\necho 42\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxUnavailable):
        Sandbox.open("bubblewrap", workers=1)


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "", ".", "a\0b", "a//b", "\ud800", "x" * 256])
def test_paths_outside_of_the_working_folder_are_refused(path: str):
    with pytest.raises(UserError, match="within the working folder"):
        Program(source="", files={path: ""})


def test_files_that_cannot_be_written_are_refused():
    with pytest.raises(UserError, match="'a' is a file, and a folder in 'a/b'"):
        Program(source="", files={"a": "", "a/b": ""})
    with pytest.raises(UserError, match="the files hold 100 bytes"):
        Program(source="", files={"a": "x" * 100}, limits=Limits(file=100))
