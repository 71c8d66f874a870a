"""Python files and modules named on the command line, loaded with errors that say what is wrong and where."""

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
    """Run the file once and return it as a module; what lies beside the file can be imported from it.

    Raises:
      UsageError: no such file, or one that raises.
    """
    path = Path(name).expanduser().resolve()
    if path in LOADED:
        return LOADED[path]
    if not path.is_file():
        raise UsageError(f"there is no file {name}")
    spec = importlib.util.spec_from_file_location(f"_{path.stem}_{len(LOADED)}", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{name} is no Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    sys.path.append(str(path.parent))
    LOADED[path] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        where = blamed(error) or f"{name}: "
        del sys.modules[spec.name], LOADED[path]
        raise UsageError(f"{where}{described(error)}, when it was loaded") from error
    return module


def load_module(name: str) -> ModuleType:
    """Import a module by its dotted name.

    Raises:
      UsageError: no such module, or one that raises.
    """
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        missing = isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}.")
        reason = "there is no such module" if missing else f"{described(error)}, when it was imported"
        raise UsageError(f"{name}: {reason}") from error


def attribute(module: ModuleType, name: str, shown: str | Path) -> Any:
    """What the module calls `name`.

    Raises:
      UsageError: it has no such name; the message lists the functions that it defines.
    """
    if not hasattr(module, name):
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
        there = [key for key in own if not key.startswith("_")] or [key for key in vars(module) if key[0] != "_"]
        raise UsageError(f"{shown} has no {name}; it has {', '.join(there) or 'nothing'}")
    return getattr(module, name)


def blamed(error: BaseException) -> str:
    """The innermost line of a loaded file that led to the error, as "file, line 3: "; empty where none did."""
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename) in LOADED:
        return f"{error.filename}, line {error.lineno}: "
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if Path(frame.filename) in LOADED:
            return f"{frame.filename}, line {frame.lineno}: "
    return ""


def described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")
