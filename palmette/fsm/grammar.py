"""stub"""

from palmette.fsm.algebra import Language
from palmette.fsm.limits import Limits


def parse_grammar(text: str, limits: Limits) -> Language:
    raise NotImplementedError
