"""What no program can do to the machine or to its verdict; skipped where no sandbox works."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.judge import Problem, check_gold, judge
from pipeline.judge.code import sandbox
from pipeline.judge.code.grade_code import run_stdio, run_tests
from pipeline.judge.code.sandbox import Limits, SandboxMissingError, run

CASES = Path(__file__).parents[3] / "shared" / "cases" / "sandbox_escape_cases.json"
LIMITS = Limits(seconds=4, memory_mb=256)


@pytest.fixture(autouse=True)
def _needs_a_sandbox() -> None:
    try:
        sandbox.probe()
    except SandboxMissingError as missing:
        pytest.skip(str(missing))


def code_problem(**meta: object) -> Problem:
    return Problem("p", "", "", "code", meta=dict(meta))


def fenced(program: str) -> str:
    return f"Here it is:\n```python\n{program}\n```"


def test_without_bubblewrap_code_is_refused_and_never_run(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox.probe.cache_clear()
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    monkeypatch.setattr(sandbox, "Box", None)
    with pytest.raises(SandboxMissingError, match="install bubblewrap"):
        judge(fenced("x = 1"), code_problem(test_list=["assert x == 1"]))
    sandbox.probe.cache_clear()


def test_the_three_test_styles_tell_right_from_wrong() -> None:
    human = code_problem(test="def check(f):\n    assert f([1, 2.5]) == (3.5, {'n': 2})\n",
                         entry_point="total")
    right = "def total(v):\n    return sum(v), {'n': len(v)}"
    assert judge(fenced(right), human).verdict == "correct"
    assert judge(fenced(right.replace("len(v)", "0")), human).verdict == "wrong"
    listed = code_problem(test_list=["assert set(twins([3, 3, 4])) == {3}"], test_imports=[])
    assert judge(fenced("def twins(v): return {x for x in v if v.count(x) > 1}"),
                 listed).verdict == "correct"
    piped = code_problem(inputs=["2 3\n", "4 5\n"], outputs=["6\n", "20"])
    program = "a, b = map(int, input().split())\nprint(a * b)"
    assert judge(fenced(program), piped).verdict == "correct"
    assert judge(fenced("print(6)"), piped).verdict == "wrong"


def test_a_code_problem_without_tests_is_refused() -> None:
    with pytest.raises(UserError, match="no tests"):
        judge(fenced("x = 1"), code_problem())
    with pytest.raises(UserError, match="empty list"):
        judge(fenced("x = 1"), code_problem(test_list=[]))


@pytest.mark.parametrize("meta, said", [
    ({}, "no tests"), ({"inputs": ["1"]}, "lists of strings"),
    ({"inputs": "1", "outputs": "1"}, "lists of strings"),
    ({"inputs": ["1"], "outputs": [1]}, "lists of strings"),
    ({"inputs": ["1"], "outputs": []}, "empty list"),
    ({"inputs": ["1"], "outputs": ["1", "2"]}, "differ in length"),
    ({"test": "def check(f): pass"}, "entry_point")])
def test_tests_that_cannot_be_run_are_refused_before_any_answer(meta: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_gold(code_problem(**meta))


def test_a_hanging_test_costs_itself_alone() -> None:
    cases = ["assert f(1) == 1", "assert f(2) == 2", "assert f(3) == 3"]
    program = "def f(x):\n    while x == 2: pass\n    return x"
    assert run_tests(program, cases, limits=LIMITS, test_seconds=1) == [True, False, True]


def test_a_value_that_claims_to_equal_everything_is_compared_as_plain_data() -> None:
    program = ("class E(int):\n    def __eq__(s, o): return True\n    __hash__ = int.__hash__\n"
               "    def __int__(s): return 7\n    def __repr__(s): return '7'\n"
               "def f(): return E(1)\ndef g(): return object()")
    assert run_tests(program, ["assert f() == 7", "assert f() == 1", "assert g() == 7"]) == [
        False, True, False]


@pytest.mark.parametrize("program", ["import sys; sys.exit(0)", "import os; os._exit(0)",
                                     "raise SystemExit", "print('PASSED')"])
def test_leaving_early_or_claiming_success_passes_nothing(program: str) -> None:
    assert run_tests(program, ["assert f(1) == 1"]) == [False]


def test_the_solution_never_sees_an_expected_value() -> None:
    program = ("import os\ndef f():\n    found = ''\n    for p in os.listdir('/proc'):\n"
               "        try: found += open(f'/proc/{p}/cmdline').read()\n"
               "        except OSError: pass\n"
               "    import sys; frame = sys._getframe()\n"
               "    while frame: found += repr(frame.f_locals); frame = frame.f_back\n"
               "    return int(str(7350 + 1) in found)")
    assert run_tests(program, ["secret = 7351\nassert f() == 0"]) == [True]


def test_output_is_bounded_and_compared_outside() -> None:
    flood = run("while True: print('A' * 1000000)", limits=LIMITS)
    assert flood.ended == "output" and len(flood.output) <= LIMITS.output_kb << 10
    assert run_stdio("print(input()[::-1])", ["abc"], ["cba"]) == [True]


@pytest.mark.parametrize(("name", "program"), [
    ("no passwd", "open('/etc/passwd').read()"), ("no root folder", "open('/' + 'root/x', 'w')"),
    ("read-only system", "open('/usr/x', 'w')"), ("read-only top", "open('/x', 'w')"),
    ("no environment of others", "open('/proc/1/environ').read() or 1/0"),
    ("no raw socket", "import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW)"),
    ("no chroot", "import os; os.chroot('/tmp')"), ("no setuid", "import os; os.setuid(0)"),
    ("full disk", "f = open('/tmp/a', 'wb')\nwhile True: f.write(b'0' * 10**6)"),
    ("full device folder", "open('/dev/x', 'w')"), ("no raised limit",
     "import resource as r; r.setrlimit(r.RLIMIT_AS, (-1, -1))"),
    ("small shared memory", "f = open('/dev/shm/a', 'wb')\nfor i in range(9): f.write(b'0' * 10**5)"
     "\nf.flush()")])
def test_the_box_refuses(name: str, program: str) -> None:
    result = run(program + "\nprint('done')", limits=LIMITS)
    assert "done" not in result.output, name


def test_memory_counts_children_and_processes_are_few() -> None:
    forks = ("import os, time\nfor i in range(10):\n    if os.fork() == 0:\n"
             "        b = bytearray(60 << 20); b[::4096] = b'1' * len(b[::4096]); time.sleep(3)\n"
             "        os._exit(0)\ntime.sleep(2); print('done')")
    assert run(forks, limits=LIMITS).ended == "memory"
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    before = time.monotonic()
    assert run(bomb, limits=Limits(seconds=2)).ended in ("timeout", "memory")
    assert time.monotonic() - before < 30


class Host:
    """A decoy process, a listening port, a secret and a writable folder on the host."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / ".ssh").mkdir()
        (folder / ".ssh" / "id_rsa").write_text("CANARY")
        self.decoy = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.port = self.tcp.getsockname()[1]
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", self.port))
        for server in (self.tcp, self.udp):
            server.setblocking(False)
        folder.chmod(0o777)

    def header(self) -> str:
        return (f"HOME={str(self.folder)!r}; WR={str(self.folder)!r}; PORT={self.port}; "
                f"DECOY={self.decoy.pid}\n")

    def reached(self) -> bool:
        for receive in (self.tcp.accept, lambda: self.udp.recv(10)):
            try:
                receive()
            except BlockingIOError:
                continue
            return True
        return False

    def close(self) -> None:
        self.decoy.kill()
        self.decoy.wait()
        self.tcp.close()
        self.udp.close()


def test_no_known_attack_on_a_sandbox_is_won(tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    if not CASES.exists():
        pytest.skip("the escape cases are not beside this checkout")
    monkeypatch.setenv("API_KEY", "sk-canary")
    host, won = Host(tmp_path), []
    try:
        for case in json.loads(CASES.read_text()):
            if attack_wins(case, host):
                won.append(case["id"])
    finally:
        host.close()
    assert won == []


def attack_wins(case: dict[str, str], host: Host) -> bool:
    program, win = host.header() + case["code"], case["win"]
    if win.startswith("grade"):
        passed = run_tests(program, ["assert f(1234) == 1234528"], limits=LIMITS)[0]
        return passed == (win == "grade")
    before = time.monotonic()
    result = run(program, limits=LIMITS)
    return ("ESCAPED!" in result.output or len(result.output) > LIMITS.output_kb << 10
            or time.monotonic() - before > LIMITS.seconds + 20 or host.reached()
            or host.decoy.poll() is not None
            or [path.name for path in host.folder.iterdir()] != [".ssh"])


def test_a_program_makes_no_namespace_and_hides_no_memory() -> None:
    """As root a nested user namespace could mount a tmpfs beyond every limit."""
    program = ("import ctypes\n"
               "lib = ctypes.CDLL(None, use_errno=True)\n"
               "calls = [lib.unshare(0x10020000), lib.shmget(0, 4096, 0o1600),\n"
               "         lib.setns(0, 0), lib.mount(b'x', b'/tmp', b'tmpfs', 0, None)]\n"
               "print(calls, hasattr(__import__('os'), 'memfd_create'))\n"
               "import os\n"
               "try: os.memfd_create('x')\n"
               "except OSError as error: print('memfd', error.errno)")
    said = run(program).output
    assert "[-1, -1, -1, -1]" in said and "memfd 1" in said


def test_files_in_memory_count_as_memory() -> None:
    program = ("import time\nwith open('/tmp/a', 'wb') as file: file.write(b'x' * (60 << 20))\n"
               "time.sleep(1)\nprint('still here')")
    whole = run(program, limits=Limits(memory_mb=512, file_mb=64))
    assert "still here" in whole.output
    assert run(program, limits=Limits(memory_mb=90, file_mb=64)).ended == "memory"
