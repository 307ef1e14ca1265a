"""Counterpart of `sglang.lang.ir`: the regular expressions behind `dtype=`, and its names for programs and samples."""

from palmette.ir import Expr as SglExpr
from palmette.ir import ExprList as SglExprList
from palmette.ir import Gen as SglGen
from palmette.ir import Select as SglSelect
from palmette.lang.dtypes import REGEX_BOOL, REGEX_FLOAT, REGEX_INT, REGEX_STR
from palmette.lang.program import Program as SglFunction
from palmette.types import SamplingParams as SglSamplingParams

__all__ = [
    "REGEX_BOOL",
    "REGEX_FLOAT",
    "REGEX_INT",
    "REGEX_STR",
    "SglExpr",
    "SglExprList",
    "SglFunction",
    "SglGen",
    "SglSamplingParams",
    "SglSelect",
]
