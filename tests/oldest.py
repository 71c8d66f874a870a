"""Print the oldest versions that pyproject.toml allows, as constraints for pip: what `make quick OLDEST=1` installs."""

import re
import tomllib
from pathlib import Path

EXTRAS = ("experiments", "data", "checkpoints")

if __name__ == "__main__":
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in EXTRAS for line in project["optional-dependencies"][extra])]
    print(*sorted({re.sub(r">=(\S+)", r"==\1", line) for line in lines}), sep="\n")
