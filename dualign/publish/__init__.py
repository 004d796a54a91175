"""From a finished run to a repository on the Hub that works for the next person."""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

__all__ = ["checklist", "pack", "publish", "release", "show", "staging", "start"]


class _CallableRoom(ModuleType):
    """`dualign.publish(...)` is a function of the API; importing this room, which Python then binds
    to the same name, must not hide it.
    """

    def __call__(self, *args: Any, **options: Any) -> Any:
        return import_module("dualign.publish.start").publish(*args, **options)


sys.modules[__name__].__class__ = _CallableRoom
