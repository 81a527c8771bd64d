"""Writes what a benchmark found into its file of results, with what it was measured by and on."""

import json
import os
import sys
from datetime import date
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "results"


class Record:
    """The part `name` of results/FILE. It notes the load when it is made and after."""

    def __init__(self, file, name):
        self.path, self.name, self.load = RESULTS / file, name, os.getloadavg()[0]

    def write(self, found):
        """Print `found`, and keep it if the part has a name."""
        print(json.dumps(found, indent=1))
        if self.name:
            kept = json.loads(self.path.read_text(encoding="utf-8"))
            command = ["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]
            kept[self.name] = {
                "date": str(date.today()), "machine": f"{os.cpu_count()} CPU cores, load "
                f"{self.load:.0f} before and {os.getloadavg()[0]:.0f} after",
                "command": " ".join(command), **found}
            self.path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
