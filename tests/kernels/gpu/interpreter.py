"""Makes Triton's interpreter twice as fast for the tests that import this.

Each call of a jitted function within a kernel, tl.sum included, makes the interpreter patch `triton.language` anew, and
that takes more time than what is called. Once for each of triton's own modules is enough: a kernel's start patches what
kernels see, and nested calls undo nothing.
"""

from __future__ import annotations

from typing import Any

import torch

_patched: set[str] = set()


def _call(self: Any, *args: Any, **kwargs: Any) -> Any:
    from triton.runtime import interpreter

    module = self.fn.__module__
    if module.startswith("triton.") and module not in _patched:
        _patched.add(module)
        interpreter._patch_lang(self.fn)
    return self.rewrite()(*args, **kwargs)


if not torch.cuda.is_available():
    from triton.runtime.interpreter import InterpretedFunction

    InterpretedFunction.__call__ = _call
