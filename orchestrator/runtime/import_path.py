"""Import path: a user's own modules replace none of xsweep's, and none of its dependencies.

Python searches the working folder and PYTHONPATH before its standard library and the installed
packages, and Ray adds the working folder of the controller to the path of every worker. A
`torch.py` or `datasets.py` there would be imported in place of the package of that name.
"""

import os
import sys
from collections.abc import Iterable
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path

import xsweep

LAST = "XSWEEP_PYTHONPATH"
"""Environment variable: folders that a process of xsweep searches after all others."""

LIBRARY = str(Path(os.__file__).parent)
ZIPPED_LIBRARY = "python{}{}.zip".format(*sys.version_info)


def put_user_folders_last() -> None:
    """Move the user's folders to the end of `sys.path`: importable, but after everything else."""
    folders = user_folders()
    sys.path[:] = [*_without(folders), *folders]
    os.environ[LAST] = os.pathsep.join(folders)


def user_folders() -> list[str]:
    """Folders ahead of the standard library in `sys.path`, and those that `LAST` names."""
    ahead = sys.path[: sys.path.index(LIBRARY)] if LIBRARY in sys.path else []
    named = filter(None, os.environ.get(LAST, "").split(os.pathsep))
    folders = [Path(entry).absolute() for entry in (*ahead, *named)]
    return [
        str(folder)
        for folder in dict.fromkeys(folders)
        if folder.name != ZIPPED_LIBRARY and "site-packages" not in folder.parts
    ]


def _without(folders: list[str]) -> list[str]:
    return [entry for entry in sys.path if str(Path(entry).absolute()) not in folders]


def child_environment() -> dict[str, str]:
    """This environment for a Python process that has not run `put_user_folders_last` yet."""
    folders = user_folders()
    environment = {**os.environ, "PYTHONSAFEPATH": "1", LAST: os.pathsep.join(folders)}
    environment.pop("PYTHONPATH", None)
    ours = str(Path(xsweep.__file__).parent.parent)
    if ours in folders:  # it may not be installed
        environment["PYTHONPATH"] = ours
    return environment


def shadowed(modules: Iterable[str]) -> dict[str, str]:
    """Modules that are imported from elsewhere than the installed packages: {module: file}."""
    installed = _without(user_folders())
    found = {}
    for name in modules:
        used, meant = find_spec(name), PathFinder.find_spec(name, installed)
        if used and meant and used.origin != meant.origin:
            found[name] = str(used.origin)
    return found
