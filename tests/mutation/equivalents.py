"""Mutants that no test can notice, because they change nothing that anyone can see."""

from __future__ import annotations

from tests.mutation.mutants import Site


def _of(file: str, *rows: tuple[str, str, int, str]) -> dict[Site, str]:
  """Returns {site: reason} of rows (function, operator, index, reason)."""
  return {Site(f"egad_jax/{file}.py", *row[:3]): row[3] for row in rows}


EQUIVALENTS: dict[Site, str] = {}
