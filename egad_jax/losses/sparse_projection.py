"""The product of a sparse matrix, known before the program is compiled, with many distributions.

A scatter adds its rows one after the other on an accelerator, a gather reads them at the speed of
the memory. So the product is made of gathers: the l-th gather reads, for every row of the result,
the l-th entry of the matrix that adds to that row. Entries of the few rows with many of them are
left to one scatter, so that no gather is mostly empty.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint
from jax.typing import ArrayLike

# Least share of a result's rows that a gather must add something to.
_LEAST_FILLED = 0.25


class _Table(NamedTuple):
  """A sparse matrix [to, from], its entries sorted for `_product`.

  Attributes:
    size: number of rows of the result.
    layers: [(index int32 [size], weight float32 [size])], one entry for each row of the result; the
      weight is 0 where a row has no entry left.
    rows: int [n], ascending: the rows of the result that the other entries add to.
    columns: int [n], the rows of the operand that they read.
    weights: float32 [n].
  """

  size: int
  layers: list[tuple[np.ndarray, np.ndarray]]
  rows: np.ndarray
  columns: np.ndarray
  weights: np.ndarray


def sparse_projection(
  projection: tuple[ArrayLike, ArrayLike], size: int
) -> Callable[[jax.Array], jax.Array]:
  """Returns the function q -> W^T q, [..., n, Vs] -> [..., n, size]; its gradient transposes W.

  Args:
    projection: (ids, weights), each [Vs, k]: W has weights[i, j] at (i, ids[i, j]). NumPy arrays
      are sorted before the program is compiled; others are scattered.
    size: number of columns of W; ids >= size are dropped.
  """
  ids, weights = projection
  if not (isinstance(ids, np.ndarray) and isinstance(weights, np.ndarray)):
    scattered = functools.partial(_scattered, ids=jnp.asarray(ids), weights=jnp.asarray(weights))
    return jnp.vectorize(lambda q: scattered(q.T, size=size).T, signature="(n,s)->(n,t)")
  columns = np.repeat(np.arange(ids.shape[0]), ids.shape[1])
  rows, entries = ids.reshape(-1), weights.reshape(-1)
  used = (entries != 0) & (rows < size)
  rows, columns, entries = rows[used], columns[used], entries[used]
  forward, backward = (
    _table(rows, columns, entries, size),
    _table(columns, rows, entries, ids.shape[0]),
  )

  @jax.custom_vjp
  def product(q: jax.Array) -> jax.Array:
    return _product(forward, q)

  product.defvjp(lambda q: (_product(forward, q), ()), lambda _, g: (_product(backward, g),))
  return product


def check_projection(
  projection: tuple[ArrayLike, ArrayLike], student_vocab: int, teacher_vocab: int
) -> None:
  """Raises ValueError unless a projection fits two vocabularies of these sizes."""
  ids, weights = np.shape(projection[0]), np.shape(projection[1])
  if len(ids) != 2 or ids != weights or ids[0] != student_vocab:
    raise ValueError(
      f"projection must be ids and weights of shape [{student_vocab}, k], a row for each"
      f" entry of the student's vocabulary, got {ids} and {weights}."
    )
  known: np.ndarray = (
    projection[0] if isinstance(projection[0], np.ndarray) else np.zeros(1, np.int32)
  )
  if known.min() < 0:
    raise ValueError(f"projection leads to teacher id {known.min()}; ids start at 0.")
  if known.max() >= teacher_vocab:
    raise ValueError(
      f"projection leads to teacher id {known.max()}, beyond the {teacher_vocab}"
      " entries of the teacher's vocabulary; it was made for another teacher."
    )


def _table(rows: np.ndarray, columns: np.ndarray, weights: np.ndarray, size: int) -> _Table:
  order = np.lexsort((columns, rows))
  rows, columns, weights = rows[order], columns[order], weights[order]
  rank = np.arange(len(rows)) - np.searchsorted(rows, rows)
  layers = []
  for layer in range(int(np.max(rank, initial=-1)) + 1):
    here = rank == layer
    if here.sum() < _LEAST_FILLED * size:
      break
    # Rows without an entry read rows of the operand in order, not all of them the same one.
    index, weight = np.arange(size) % (columns.max() + 1), np.zeros(size)
    index[rows[here]], weight[rows[here]] = columns[here], weights[here]
    layers.append((index.astype(np.int32), weight.astype(np.float32)))
  rest = rank >= len(layers)
  left = rows[rest], columns[rest], weights[rest]
  return _Table(size, layers, *left)


def _product(table: _Table, operand: jax.Array) -> jax.Array:
  """Returns the product with the table for each row: [..., n, from] -> [..., n, to].

  Rows of the transposed operand are gathered, so an operand laid out by `vocabulary_major` spares
  the compiler a transposition. The result is laid out in that way.
  """
  operand = jnp.swapaxes(operand, -1, -2)

  def weighted_rows(index: np.ndarray, weight: np.ndarray) -> jax.Array:
    rows = operand.at[..., index, :].get(mode="promise_in_bounds")
    return rows * jnp.broadcast_to(weight[:, None], rows.shape)

  result = jnp.zeros((*operand.shape[:-2], table.size, operand.shape[-1]), operand.dtype)
  for index, weight in table.layers:
    result = result + weighted_rows(index, weight)
  if table.rows.size:
    rows = weighted_rows(table.columns, table.weights)
    result = result.at[..., table.rows, :].add(
      rows, indices_are_sorted=True, mode="promise_in_bounds"
    )
  return jnp.swapaxes(_in_order(result), -1, -2)


def vocabulary_major(x: jax.Array) -> jax.Array:
  """Has the compiler lay out [..., n, vocab] in memory as if it were [..., vocab, n]."""
  return jnp.swapaxes(_in_order(jnp.swapaxes(x, -1, -2)), -1, -2)


def _in_order(x: jax.Array) -> jax.Array:
  """Has the compiler lay out an array with its last axis as the minor one, the first as major."""
  return with_layout_constraint(x, Layout(major_to_minor=tuple(range(x.ndim))))


def _scattered(q: jax.Array, ids: jax.Array, weights: jax.Array, size: int) -> jax.Array:
  result = jnp.zeros((size, q.shape[1]), q.dtype)
  # One pass per column of W's arrays: all at once would hold k copies of the distribution.
  for column in range(ids.shape[1]):
    result = result.at[ids[:, column]].add(q * weights[:, column, None], mode="drop")
  return result
