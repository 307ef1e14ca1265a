"""JSON Schema as a language: every keyword enforced, or refused with its place, its reason and a hint."""

from palmette.fsm.schema.build import compile_schema

__all__ = ["compile_schema"]
