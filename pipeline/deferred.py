"""Libraries that are imported when something of them is first used.

For commands that only read settings: they import every stage, and few of these libraries.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


def defer(*names: str) -> None:
    """Let `import NAME` load the library only once an attribute of it is looked up."""
    for name in names:
        sys.modules.setdefault(name, _Deferred(name))


class _Deferred(ModuleType):
    def __getattr__(self, attribute: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), attribute)
