"""Counterpart of `sglang.lang.interpreter`: its names for the state and the branches of a fork."""

from palmette.lang.branches import Branches as ProgramStateGroup
from palmette.lang.state import State as ProgramState

__all__ = ["ProgramState", "ProgramStateGroup"]
