"""In the place of `accelerate launch` on a node: saves a checkpoint a step, and learns nothing.

Rank 0 makes 4 steps and waits after the second until the file `go` is there, or a stop is asked
for; the others wait for it. The rank whose number the file `fails` holds ends with code 1.
"""

import json
import os
import sys
import time
from pathlib import Path

STEPS = 4


def main():
    rank = int(sys.argv[sys.argv.index("--machine_rank") + 1])
    out = Path(sys.argv[-1]).parent
    partial = out / f"started-{rank}.partial"
    partial.write_text(json.dumps({"argv": sys.argv[1:], "environment": dict(os.environ),
                                   "pid": os.getpid(), "actor": os.getppid()}))
    partial.replace(out / f"started-{rank}.json")
    print(f"rank {rank} has begun", flush=True)
    fails, ends = out / "fails", (out / "counts.json", out / "stopped.txt")
    while not any(path.exists() for path in ends):
        if fails.exists() and fails.read_text() == str(rank):
            sys.exit(f"rank {rank} fails")
        if rank == 0 and not fails.exists():
            step(out)
        time.sleep(0.02)


def step(out):
    """Save one more checkpoint, or end."""
    done = max([0, *(int(path.parent.name[11:])
                     for path in out.glob("checkpoints/checkpoint-*/whole.json"))])
    if Path(os.environ["LIMBECK_STOP_FILE"]).exists():
        (out / "stopped.txt").write_text(f"stopped after step {done}")
    elif done == STEPS:
        (out / "counts.json").write_text(json.dumps({"steps": done}))
    elif done != 2 or (out / "go").exists():
        checkpoint = out / f"checkpoints/checkpoint-{done + 1}"
        checkpoint.mkdir(parents=True, exist_ok=True)
        (checkpoint / "whole.json").write_text("{}")


if __name__ == "__main__":
    main()
