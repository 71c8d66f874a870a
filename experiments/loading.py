"""Load Python files and modules that are named on the command line, with errors that state what is wrong and where."""

import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from experiments.arguments import UsageError

LOADED: dict[Path, ModuleType] = {}


def load_file(name: str | Path) -> ModuleType:
    """Run a file once and return it as a module; the file can import modules from its own folder.

    Raises:
      UsageError: there is no such file, or it raises.
    """
    path = Path(name).expanduser().resolve()
    if path in LOADED:
        return LOADED[path]
    if not path.is_file():
        raise UsageError(f"there is no file {name}")
    spec = importlib.util.spec_from_file_location(f"_{path.stem}_{len(LOADED)}", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{name} is not a Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module
    sys.path.append(str(path.parent))
    LOADED[path] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        where = error_location(error) or f"{name}: "
        del sys.modules[spec.name], LOADED[path]
        raise UsageError(f"{where}{describe_error(error)}, when it was loaded") from error
    return module


def load_module(name: str) -> ModuleType:
    """Import a module by its dotted name.

    Raises:
      UsageError: there is no such module, or it raises.
    """
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        missing = isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}.")
        reason = "there is no such module" if missing else f"{describe_error(error)}, when it was imported"
        raise UsageError(f"{name}: {reason}") from error


def attribute(module: ModuleType, name: str, shown: str | Path) -> Any:
    """The attribute `name` of a module.

    Raises:
      UsageError: the module has no such name; the message lists the names that it defines.
    """
    if not hasattr(module, name):
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
        there = [key for key in own if not key.startswith("_")] or [key for key in vars(module) if key[0] != "_"]
        raise UsageError(f"{shown} has no {name}; it has {', '.join(there) or 'nothing'}")
    return getattr(module, name)


def error_location(error: BaseException) -> str:
    """The innermost line of a loaded file in the traceback of an error, as "file, line 3: "; empty if there is none."""
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename) in LOADED:
        return f"{error.filename}, line {error.lineno}: "
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if Path(frame.filename) in LOADED:
            return f"{frame.filename}, line {frame.lineno}: "
    return ""


def describe_error(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")
