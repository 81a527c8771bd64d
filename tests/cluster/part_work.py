"""Work that the processes of a test's cluster find by its name."""

import os
import time

from pipeline.errors import UserError


class Held:
    """Squares a number, but never ends on the node `lost`; notes who began what in `folder`."""

    def __init__(self, folder, lost):
        self.folder, self.lost = folder, lost

    def __call__(self, number):
        import ray

        node = ray.get_runtime_context().get_node_id()
        (self.folder / f"{number} {node}").touch()
        # The others end nothing before that node has begun a part.
        while node == self.lost or not list(self.folder.glob(f"* {self.lost}")):
            time.sleep(0.05)
        return number * number


class Late:
    """Makes -1 of a number, and is taken up late by all processes but the first."""

    def __init__(self, folder):
        self.folder = folder

    def __setstate__(self, state):
        vars(self).update(state)
        try:
            (self.folder / "first").touch(exist_ok=False)
        except FileExistsError:
            time.sleep(3)

    def __call__(self, number):
        return -1


def slowly_squared(number):
    time.sleep(0.3)
    return number * number


def pid_of(part):
    return os.getpid()


def refuse(part):
    if part == 3:
        raise UserError("part 3 is bad")


def die(part):
    os._exit(1)
