"""The lecture: open the course of the site in a browser, and build the site first where there is none."""

import argparse
import importlib.util
import subprocess
import sys
import webbrowser
from pathlib import Path

from experiments.arguments import UsageError

SITE = Path(__file__).parent.parent / "docs"
BUILT = SITE / "_build" / "html"
# Sphinx gives each job pages that follow one another: with one job a core, one of them would run every chapter.
SPHINX = (sys.executable, "-m", "sphinx", "-b", "html", "-j", "12", "-W", "--keep-going", "-q")


def run(args: argparse.Namespace) -> int:
    """Print the address of the course, after a build where it is asked for or needed, and open it."""
    page = BUILT / "course" / "index.html"
    if args.build or not page.exists():
        if importlib.util.find_spec("sphinx") is None or importlib.util.find_spec("myst_nb") is None:
            raise UsageError("the course is not built yet, and Sphinx is missing here: `make docs` installs and builds")
        if not args.quiet:
            print("building the site: every cell of the course runs, which takes some minutes", flush=True)
        if code := subprocess.run([*SPHINX, str(SITE), str(BUILT)], check=False).returncode:
            return code
    if not args.quiet:
        print(page)
    if args.open:
        webbrowser.open(page.as_uri())
    return 0
