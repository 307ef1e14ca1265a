"""SGLang's frontend names: `import palmette.compat.sglang as sgl`.

The names of SGLang's `sglang` package that its programs use, with its argument lists and results. `sglang.lang.ir`,
`.choices`, `.interpreter` and `.api` have their counterparts below `palmette.compat.sglang.lang`.
"""

from typing import TYPE_CHECKING, Any

import palmette
from palmette.compat.sglang.lang.ir import REGEX_BOOL, REGEX_FLOAT, REGEX_INT, REGEX_STR

if TYPE_CHECKING:
    from palmette import *  # noqa: F403

__all__ = ["REGEX_BOOL", "REGEX_FLOAT", "REGEX_INT", "REGEX_STR"]
__all__ += palmette.__all__


def __getattr__(name: str) -> Any:
    """Every name of the language, found when it is used: `Runtime` and `Engine` bring torch along."""
    return getattr(palmette, name)
