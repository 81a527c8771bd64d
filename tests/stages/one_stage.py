"""A stage that processes of the tests make: it says that it began, and ends with a line."""

import sys

from pipeline.stage import Plan, Stage, execute, make_plan


class Whole:
    name, seed = "w", 0


class Module:
    @staticmethod
    def run(experiment, inputs, out):
        (out / "by.txt").write_text(sys.argv[1])
        print("making", flush=True)
        sys.stdin.readline()
        return {}


def made(place, **options) -> Plan:
    """Make the stage where `place` says, or wait for who does; prints who made it."""
    plan = make_plan(Stage("one", lambda: Module, **options), Whole(), {}, place)
    print(execute(plan, Whole(), {}, {"by": sys.argv[1]}, wait=True)["by"], flush=True)
    return plan
