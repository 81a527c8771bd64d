"""Runs inside the sandbox only (its text is handed to `python -c`): imports nothing of limbeck.

Roles: `script` runs a program with given input; `solution` runs a program and answers questions
about its names with plain values; `tests` runs trusted tests whose unknown names are asked of the
solution. The two sit in different boxes, so the solution never holds an expected value.
"""

# mypy: ignore-errors
import builtins
import marshal
import os
import resource
import sys

PLAIN = (int, float, str, bool, type(None))


def encode(value, depth=0):
    """A value as JSON with its type; exact builtin types alone, subclasses as what they extend."""
    if depth > 50:
        raise ValueError("nested too deep")
    if type(value) in PLAIN:
        return {"t": "float", "v": repr(value)} if type(value) is float else value
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return {"t": kind.__name__, "v": [encode(v, depth + 1) for v in kind.__iter__(value)]}
    if isinstance(value, dict):
        pairs = [[encode(k, depth + 1), encode(v, depth + 1)] for k, v in dict.items(value)]
        return {"t": "dict", "v": pairs}
    if isinstance(value, complex):
        return {"t": "complex", "v": [repr(value.real), repr(value.imag)]}
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return encode(kind.__new__(kind, kind.__str__(value) if kind is str else
                                       getattr(kind, f"__{kind.__name__}__")(value)))
    if isinstance(value, bytes):
        return {"t": "bytes", "v": bytes.hex(value)}
    return encode(list(value), depth + 1) if hasattr(value, "__next__") else {"t": "other"}


def decode(data):
    """The plain value that encode wrote. ValueError for what is none."""
    if type(data) is not dict:
        return data
    kind, value = data["t"], data.get("v")
    if kind in ("list", "tuple", "set", "frozenset"):
        return getattr(builtins, kind)(decode(item) for item in value)
    if kind == "dict":
        return {decode(k): decode(v) for k, v in value}
    if kind == "complex":
        return complex(float(value[0]), float(value[1]))
    if kind in ("float", "bytes"):
        return float(value) if kind == "float" else bytes.fromhex(value)
    if kind == "other":
        return object()
    raise ValueError(f"no such type {kind!r}")


def confine(uid, memory, processes, size, seconds):
    """Limits first, then the user: nothing here can be undone by the code that follows."""
    limits = ((resource.RLIMIT_AS, memory), (resource.RLIMIT_NPROC, processes),
              (resource.RLIMIT_FSIZE, size), (resource.RLIMIT_CPU, seconds),
              (resource.RLIMIT_NOFILE, 128), (resource.RLIMIT_CORE, 0))
    for which, most in limits:
        resource.setrlimit(which, (most, most))
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    os.environ.clear()
    os.environ["PATH"] = "/usr/bin:/bin"


def script(text, given):
    """Run a whole program: its standard output goes to the judge, bounded there."""
    file = os.open("/tmp/input", os.O_RDWR | os.O_CREAT)
    with os.fdopen(os.dup(file), "wb") as writer:
        writer.write(given.encode(errors="surrogatepass"))
    os.lseek(file, 0, os.SEEK_SET)
    os.dup2(file, 0)
    builtins.exit = builtins.quit = sys.exit
    exec(compile(text, "solution.py", "exec"), {"__name__": "__main__"})


def solution(text, ask, reply):
    """Run the program, then answer: a name's value, or what calling it gives."""
    names = {"__name__": "solution"}
    try:
        exec(compile(text, "solution.py", "exec"), names)
    except BaseException as error:  # noqa: BLE001 - the program may raise anything at all
        reply({"raise": type(error).__name__})
        return
    reply({"value": None})
    while request := ask():
        try:
            if request["name"] not in names:
                reply({"raise": "NameError"})
            elif request["call"] is None:
                value = names[request["name"]]
                reply({"callable": True} if callable(value) else {"value": encode(value)})
            else:
                arguments, named = decode(request["call"])
                reply({"value": encode(names[request["name"]](*arguments, **named))})
        except BaseException as error:  # noqa: BLE001 - as above
            reply({"raise": type(error).__name__})


class Names(dict):
    """The tests' namespace: what it lacks is asked of the solution."""

    def __init__(self, question):
        self.question = question

    def __missing__(self, name):
        if hasattr(builtins, name):
            return getattr(builtins, name)
        if self.ask(name, None).get("callable"):
            return lambda *args, **named: decode(self.ask(name, [list(args), named])["value"])
        return decode(self.ask(name, None)["value"])

    def ask(self, name, call):
        answer = self.question({"name": name, "call": encode(call)})
        if "raise" in answer:
            kind = getattr(builtins, str(answer["raise"]), RuntimeError)
            raise kind if issubclass(kind, Exception) else RuntimeError
        return answer


def tests(setup, cases, ask, reply):
    """Run each trusted test; report one result after the other."""
    def question(request):
        reply({"ask": request})
        return ask()

    for case in cases:
        try:
            exec(compile(setup + "\n" + case, "test.py", "exec"), Names(question))
            reply({"passed": True})
        except BaseException as error:  # noqa: BLE001 - a failed test is any exception
            reply({"passed": False, "why": type(error).__name__})


def main():
    """Confine this process, take the request from standard input and play the role."""
    confine(*map(int, sys.argv[2:7]))
    source = os.fdopen(os.dup(0), encoding="utf-8", errors="surrogatepass")
    request = marshal.loads(bytes.fromhex(source.readline()))  # the judge's own words
    if sys.argv[1] == "script":
        return script(request["code"], request["input"])
    import json

    sink = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="surrogatepass")
    silent = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(silent, descriptor)

    def reply(message):
        sink.write(json.dumps(message) + "\n")
        sink.flush()

    def ask():
        line = source.readline()
        return json.loads(line) if line else None

    if sys.argv[1] == "solution":
        return solution(request["code"], ask, reply)
    return tests(request["setup"], request["cases"], ask, reply)


main()
