"""The ways in which a node of the syntax tree is broken.

An operator looks at one node and yields what may stand in its place. It reads the kind of the node
and the names of library functions, never the name of a variable or the layout of the text, so a
renamed, moved or reformatted line has the mutants that it had before.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator

Variants = Iterator[ast.AST]
Operator = Callable[[ast.AST], Variants]

_NEGATED = {
  ast.Lt: ast.GtE,
  ast.GtE: ast.Lt,
  ast.Gt: ast.LtE,
  ast.LtE: ast.Gt,
  ast.Eq: ast.NotEq,
  ast.NotEq: ast.Eq,
  ast.Is: ast.IsNot,
  ast.IsNot: ast.Is,
  ast.In: ast.NotIn,
  ast.NotIn: ast.In,
}
_STRICTNESS = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
_SIGNS = {ast.Add: ast.Sub, ast.Sub: ast.Add}
_FACTORS = {ast.Mult: ast.Div, ast.Div: ast.Mult}
_LOGIC = {ast.And: ast.Or, ast.Or: ast.And, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd}
_REDUCTIONS = {
  "sum": "mean",
  "mean": "sum",
  "any": "all",
  "all": "any",
  "max": "min",
  "min": "max",
  "argmax": "argmin",
  "argmin": "argmax",
}
# Their arguments may change places: swapping them is no fault.
_COMMUTATIVE = {"max", "min", "zip", "isinstance", "getattr"}
_JOINED = ast.List | ast.Tuple | ast.Dict | ast.ListComp | ast.DictComp | ast.JoinedStr


def _detach(node: ast.AST) -> Variants:
  if _called(node) == "stop_gradient":
    yield node.args[0]


def _promotion(node: ast.AST) -> Variants:
  name = _called(node)
  if name == "astype":
    yield node.func.value
  elif name == "promote" or name.startswith("check_") or name == "asarray":
    yield from [a for a in node.args if not _is_text(a)][:1]


def _guard(node: ast.AST) -> Variants:
  if is_guard(node) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
    yield ast.Pass()


def _mask(node: ast.AST) -> Variants:
  name = _called(node)
  if name == "where" and len(node.args) == 3:
    yield node.args[1]
  elif name in ("masked_sum", "masked_mean"):
    method = ast.Attribute(node.args[0], name.removeprefix("masked_"), ast.Load())
    yield ast.Call(method, [], [])


def _bound(node: ast.AST) -> Variants:
  name = _called(node)
  if name == "clip" and len(node.args) == 3:
    value, low, high = node.args
    nothing = ast.Constant(None)
    yield _with(node, args=[value, low, nothing])
    yield _with(node, args=[value, nothing, high])
  elif name in ("maximum", "minimum"):
    yield next(a for a in node.args if not isinstance(a, ast.Constant))


def _sign(node: ast.AST) -> Variants:
  if isinstance(node, ast.BinOp | ast.AugAssign) and _is_number(node):
    yield from _other(node, _SIGNS)
  elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
    yield node.operand


def _factor(node: ast.AST) -> Variants:
  if isinstance(node, ast.BinOp) and _is_number(node):
    yield from _other(node, _FACTORS)


def _power(node: ast.AST) -> Variants:
  if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
    yield node.left


def _negation(node: ast.AST) -> Variants:
  if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.Invert):
    yield node.operand
  elif isinstance(node, ast.If | ast.IfExp) and not isinstance(
    node.test, ast.Compare | ast.BoolOp | ast.UnaryOp
  ):
    yield _with(node, test=ast.UnaryOp(ast.Not(), node.test))


def _comparison(node: ast.AST) -> Variants:
  if isinstance(node, ast.Compare):
    yield from _compared(node, _NEGATED)


def _boundary(node: ast.AST) -> Variants:
  if isinstance(node, ast.Compare):
    yield from _compared(node, _STRICTNESS)


def _logic(node: ast.AST) -> Variants:
  if isinstance(node, ast.BoolOp) or (isinstance(node, ast.BinOp) and _is_number(node)):
    yield from _other(node, _LOGIC)


def _reduction(node: ast.AST) -> Variants:
  other = _REDUCTIONS.get(_called(node))
  if other and isinstance(node.func, ast.Attribute):
    yield _with(node, func=_with(node.func, attr=other))


def _axis(node: ast.AST) -> Variants:
  for i, keyword in enumerate(_keywords(node)):
    if keyword.arg == "axis":
      last = ast.unparse(keyword.value) == "-1"
      other = ast.Constant(0) if last else ast.UnaryOp(ast.USub(), ast.Constant(1))
      keywords = [*node.keywords[:i], _with(keyword, value=other), *node.keywords[i + 1 :]]
      yield _with(node, keywords=keywords)


# What a compiler may know or choose, without another result on a CPU.
_HINTS = ("unique_indices", "indices_are_sorted", "precision")
# What scatters, and gathers with a fill_value, do without the keyword, too.
_DEFAULTS = ("mode='drop'", "mode='fill'")


def _keyword(node: ast.AST) -> Variants:
  for i, keyword in enumerate(_keywords(node)):
    if keyword.arg not in (None, "axis", *_HINTS) and ast.unparse(keyword) not in _DEFAULTS:
      yield _with(node, keywords=[*node.keywords[:i], *node.keywords[i + 1 :]])


def _swap(node: ast.AST) -> Variants:
  # Functions of libraries are mostly attributes; like checks, they refuse what does not fit.
  name = _called(node) if isinstance(getattr(node, "func", None), ast.Name) else ""
  if not name or name.startswith("check_") or name in _COMMUTATIVE or len(node.args) < 2:
    return
  first, second, *rest = node.args
  if all(isinstance(a, ast.Name | ast.Attribute | ast.Call | ast.Subscript) for a in node.args[:2]):
    yield _with(node, args=[second, first, *rest])


def _constant(node: ast.AST) -> Variants:
  if isinstance(node, ast.Constant) and type(node.value) in (int, float):
    yield ast.Constant(node.value + 1 if abs(node.value) < 1e6 else 2 * node.value)


OPERATORS: dict[str, tuple[Operator, str]] = {
  "detach": (_detach, "a `stop_gradient` is dropped"),
  "mask": (_mask, "`where(c, a, b)` becomes `a`, `masked_sum(x, mask)` becomes `x.sum()`"),
  "sign": (_sign, "`+` and `-` change places, or a minus is dropped"),
  "factor": (_factor, "`*` and `/` change places"),
  "swap": (_swap, "the first two arguments of a call change places"),
  "keyword": (_keyword, "a keyword argument is dropped, such as a mask, a temperature, an option"),
  "axis": (_axis, "`axis=-1` becomes `axis=0`, any other `axis=-1`"),
  "reduction": (_reduction, "sum and mean, max and min, any and all change places"),
  "bound": (_bound, "one bound of a clip, a maximum or a minimum is dropped"),
  "power": (_power, "`x**n` becomes `x`"),
  "comparison": (_comparison, "a comparison is negated"),
  "boundary": (_boundary, "`<` and `<=`, `>` and `>=` change places"),
  "logic": (_logic, "and and or change places, of conditions and of masks"),
  "negation": (_negation, "a not is dropped, or a condition without comparison is negated"),
  "promotion": (_promotion, "a conversion of dtype or the check of an argument is dropped"),
  "guard": (_guard, "an `if ...: raise` or a call that is a statement is dropped"),
  "constant": (_constant, "a number becomes the next one, a huge one twice as large"),
}


def is_guard(node: ast.AST) -> bool:
  """Whether the statement is `if ...: raise ...` and no more."""
  return isinstance(node, ast.If) and isinstance(node.body[-1], ast.Raise) and not node.orelse


def _called(node: ast.AST) -> str:
  """The last name of the function that a node calls; "" for another node."""
  function = node.func if isinstance(node, ast.Call) else None
  return getattr(function, "attr", getattr(function, "id", ""))


def _keywords(node: ast.AST) -> list[ast.keyword]:
  return node.keywords if isinstance(node, ast.Call) else []


def _is_text(node: ast.AST) -> bool:
  return isinstance(node, ast.JoinedStr) or (
    isinstance(node, ast.Constant) and isinstance(node.value, str)
  )


def _is_number(node: ast.BinOp | ast.AugAssign) -> bool:
  """Whether neither side is text or a container, of which sums and products are joins."""
  sides = (node.left, node.right) if isinstance(node, ast.BinOp) else (node.value,)
  return not any(isinstance(s, _JOINED) or _is_text(s) for s in sides)


def _other(node: ast.AST, table: dict) -> Variants:
  if type(node.op) in table:
    yield _with(node, op=table[type(node.op)]())


def _compared(node: ast.Compare, table: dict) -> Variants:
  for i, comparison in enumerate(node.ops):
    if type(comparison) in table:
      yield _with(node, ops=[*node.ops[:i], table[type(comparison)](), *node.ops[i + 1 :]])


def _with(node: ast.AST, **fields) -> ast.AST:
  changed = copy.copy(node)
  for name, value in fields.items():
    setattr(changed, name, value)
  return changed
