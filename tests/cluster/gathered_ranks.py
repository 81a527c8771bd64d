"""What a training module is to its launcher: it meets the other processes, and writes counts."""

import json
import sys
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import gather_object

if __name__ == "__main__":
    state = PartialState(cpu=True)
    ranks = gather_object([state.process_index])
    if state.is_main_process:
        Path(sys.argv[1]).with_name("counts.json").write_text(json.dumps({"ranks": ranks}))
    state.destroy_process_group()
