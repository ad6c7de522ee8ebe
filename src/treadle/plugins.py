"""Code that may be there or not: a user's own, named as `package.module:attribute`, and packages of extras."""

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from treadle.errors import ConfigError


def names_code(name: str) -> bool:
    """Whether a text is of the form `package.module:attribute`."""
    module_name, _, attribute = name.partition(":")
    return all(part.isidentifier() for part in (*module_name.split("."), attribute))


def import_callable(key: str, name: str, kind: str) -> Callable[..., Any]:
    """What `name` means, the value of setting `key`; `kind` says in errors what it should be: class, function.

    Raises ConfigError where it is not of the form, cannot be imported, or is not there.
    """
    module_name, _, attribute = name.partition(":")
    form = f"package.module:{'Class' if kind == 'class' else kind}"
    if not names_code(name):
        raise ConfigError(f"{key}: {name!r:.120} is not of the form {form}")
    try:
        module = _import(module_name)
    except ImportError as error:
        raise ConfigError(f"{key}: cannot import {name!r}: {error}; install what is missing, or mend {form}") from error
    found = getattr(module, attribute, None)
    if not callable(found):
        raise ConfigError(f"{key}: module {module_name!r} has no {kind} {attribute!r}")
    return found


def import_extra(name: str, extra: str, what: str) -> ModuleType:
    """A package of an extra, which `what` needs. Raises ConfigError where it is not installed."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{what} needs the package {name.partition('.')[0]!r}, which is not installed; install it with: "
            f"pip install 'treadle[{extra}]'"
        ) from error


def _import(name: str) -> ModuleType:
    """A module that is installed, or else lies in the current folder, where workers then find it too: it comes last, so
    that it hides nothing.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        first, here = name.partition(".")[0], Path.cwd()
        if error.name != first or not ((here / f"{first}.py").is_file() or (here / first).is_dir()):
            raise
        sys.path.append(str(here))
        return import_module(name)
