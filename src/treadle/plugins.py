"""A user's own classes and functions, named in a recipe as `package.module:attribute`."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from treadle.errors import ConfigError


def import_callable(key: str, name: str, kind: str) -> Callable[..., Any]:
    """What `name` means, the value of setting `key`; `kind` says in errors what it should be: class, function.

    Raises ConfigError where it is not of the form, cannot be imported, or is not there.
    """
    module_name, _, attribute = name.partition(":")
    form = f"package.module:{'Class' if kind == 'class' else kind}"
    if not all(part.isidentifier() for part in (*module_name.split("."), attribute)):
        raise ConfigError(f"{key}: {name!r:.120} is not of the form {form}")
    try:
        module = import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"{key}: cannot import {name!r}: {error}; install what is missing, or mend {form}") from error
    found = getattr(module, attribute, None)
    if not callable(found):
        raise ConfigError(f"{key}: module {module_name!r} has no {kind} {attribute!r}")
    return found
