"""What a batch job runs: `python -m stages.job FOLDER COMMAND ...`; queued again if stopped."""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline.cluster import slurm
from stages.__main__ import main


def run_in_job() -> None:
    """Run the command, note its exit code in FOLDER, and queue the job again after code 130."""
    folder, code = Path(sys.argv.pop(1)), 1
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        raise
    except KeyboardInterrupt:
        code = 130
        raise
    finally:
        slurm.note_end(folder, code)
        if code == 130:
            slurm.requeue()


if __name__ == "__main__":
    run_in_job()
