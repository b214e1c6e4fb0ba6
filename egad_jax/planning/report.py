"""Prints plans and searches for people."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from egad_jax.chips import topology
from egad_jax.planning.plan import Plan

_GIB = 2**30


def _table(title: str, *columns: str, numbers: bool = True) -> Table:
  table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
  for i, column in enumerate(columns):
    table.add_column(column, justify="right" if i and numbers else "left", overflow="fold")
  return table


def _gib(size: int) -> str:
  return f"{size / _GIB:.3f} GiB"


def _seconds(seconds: float | None) -> str:
  return "-" if seconds is None else f"{seconds:.4f} s"


def _tokens_per_second(plan: Plan) -> str:
  return "-" if plan.tokens_per_second is None else f"{plan.tokens_per_second:,.0f}"


def plan_text(plan: Plan) -> str:
  """The text that `print_plan` prints, laid out for stdout."""
  return _text(lambda console: print_plan(plan, console))


def search_text(plans: Sequence[Plan]) -> str:
  """The text that `print_search` prints, laid out for stdout."""
  return _text(lambda console: print_search(plans, console))


def _text(draw: Callable[[Console], None]) -> str:
  # A terminal has a width and colours of its own; a file gets a fixed width.
  console = Console(width=None if sys.stdout.isatty() else 120)
  with console.capture() as captured:
    draw(console)
  return captured.get().rstrip("\n")


def print_plan(plan: Plan, console: Console) -> None:
  """Prints a plan: verdict, memory, one step, collectives, largest buffers and notes."""
  verdict = "fits" if plan.fits else "DOES NOT FIT"
  chips = topology(plan.topology).chips
  size = f"{chips} chips" + (f", {plan.devices} devices" if plan.devices > chips else "")
  console.print(
    f"{plan.config} on {plan.topology} ({size}): {verdict}; "
    f"compiled in {plan.compile_seconds:.0f} s\n",
    markup=False,
  )
  memory = _table("Memory of one device", "", "bytes", "")
  for tree, size in plan.arguments_bytes.items():
    memory.add_row(tree, f"{size:,}", _gib(size))
  rest = plan.total_bytes - plan.temporaries_bytes - sum(plan.arguments_bytes.values())
  for name, size in (
    ("temporaries", plan.temporaries_bytes),
    ("outputs besides", rest),
    ("total", plan.total_bytes),
    ("the device has", plan.hbm_bytes),
  ):
    memory.add_row(name, f"{size:,}", _gib(size))
  console.print(memory, "")
  step = _table("One step on all devices", "", "")
  for name, value in (
    ("tokens", f"{plan.tokens_per_step:,}"),
    ("FLOPs of its matrix products", f"{plan.flops:.4e}"),
    ("FLOPs at least", f"{plan.flops_minimum:.4e}"),
    ("ratio", f"{plan.flops / plan.flops_minimum:.3f}"),
    ("modelled time", _seconds(plan.modelled_seconds)),
    ("roofline", _seconds(plan.roofline_seconds)),
    ("tokens a second, modelled", _tokens_per_second(plan)),
    ("MFU, modelled", "-" if plan.mfu is None else f"{plan.mfu:.1%}"),
  ):
    step.add_row(name, value)
  console.print(step, "")
  collectives = _table("Collectives (a device, a step)", "kind", "count", "bytes")
  for collective in plan.collectives:
    collectives.add_row(collective.kind, f"{collective.count:,}", f"{collective.bytes:,}")
  console.print(collectives, "")
  buffers = _table("Largest buffers (not all at once)", "bytes", "shape", "source", numbers=False)
  for buffer in plan.largest_buffers:
    buffers.add_row(f"{buffer.bytes:>15,}", escape(buffer.shape), escape(buffer.source))
  console.print(buffers, "")
  for note in plan.notes:
    console.print(f"- {note}", markup=False)


def print_search(plans: Sequence[Plan], console: Console) -> None:
  """Prints one line for each plan of a search, in its order."""
  table = _table("Variants, fastest first", "", "total", "step", "tokens a second", "MFU")
  for plan in plans:
    mfu = "-" if plan.mfu is None else f"{plan.mfu:.1%}"
    total = _gib(plan.total_bytes) if plan.fits else f"{_gib(plan.total_bytes)}: does not fit"
    step = _seconds(plan.modelled_seconds)
    table.add_row(escape(plan.config), total, step, _tokens_per_second(plan), mfu)
  console.print(table)
  if plans:
    console.print(f"- {plans[0].notes[0]}", markup=False)
