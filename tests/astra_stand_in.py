"""A small program in the place of ASTRA-sim, which notes how often it ran and can be broken."""

from __future__ import annotations

import sys
from pathlib import Path

# A rank takes as many cycles as its trace has bytes, whatever the network.
_CODE = """\
import math, os, re, sys

folder = {folder!r}
os.close(os.open(os.path.join(folder, f"run.{{os.getpid()}}"), os.O_CREAT))
if os.path.exists(os.path.join(folder, "broken")):
    sys.exit("broken on purpose")
options = dict(argument[2:].split("=", 1) for argument in sys.argv[1:])
with open(options["network-configuration"]) as file:
    counts = re.search(r"npus_count: \\[(.*)\\]", file.read())[1]
cycles = 1000 * os.path.getsize(options["workload-configuration"] + ".0.et")
for rank in range(math.prod(map(int, counts.split(",")))):
    print(f"sys[{{rank}}] finished, {{cycles}} cycles, exposed communication 0 cycles.")
"""


class StandIn:
    """The program, with files of its own in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.path = folder / "AstraSim_Analytical_Congestion_Unaware"
        self.path.write_text(f"#!{sys.executable} -IS\n" + _CODE.format(folder=str(folder)))
        self.path.chmod(0o755)

    def runs(self) -> int:
        """How often it ran since this was last asked."""
        notes = list(self.folder.glob("run.*"))
        for note in notes:
            note.unlink()
        return len(notes)

    def change(self) -> None:
        """Become another program, with another digest."""
        self.path.write_text(self.path.read_text().replace("1000 *", "2000 *") + "# built again\n")

    def break_down(self) -> None:
        (self.folder / "broken").touch()

    def mend(self) -> None:
        (self.folder / "broken").unlink()
