"""JSON Schema as a language: every keyword enforced, or refused with its place, its reason and a hint."""

from palmette.fsm.schema.build import compile_schema
from palmette.fsm.schema.options import SchemaOptions

__all__ = ["SchemaOptions", "compile_schema"]
