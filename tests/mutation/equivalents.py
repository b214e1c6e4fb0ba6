"""Mutants that no test can notice, because they change nothing that anyone can see."""

from __future__ import annotations

from tests.mutation.mutants import Site


def _of(file: str, *rows: tuple[str, str, int, str]) -> dict[Site, str]:
  """Returns {site: reason} of rows (function, operator, index, reason)."""
  return {Site(f"egad_jax/{file}.py", *row[:3]): row[3] for row in rows}


_DETACHED_AGAIN = "what is made from it is detached again, where it leaves"
_NOT_READ = "no result reads the entries that it would change"
_NO_PAIR = "a slot without a pair is dropped, and a later block writes what it was a pair of"
_CHOOSES = "it only chooses indices or bools, through which no gradient passes"
_SELECTED_AWAY = "the value is detached and selected away, so the guard protects nothing"

EQUIVALENTS: dict[Site, str] = {
  **_of(
    "head/chunked",
    ("_summed", "detach", 0, "the head's own gradient leaves the stats out"),
    ("_summed", "mask", 0, "what fills a chunk up is dropped where the stats are put"),
  ),
  **_of("head/chunks", ("default_chunk_size", "constant", 0, "the number is rounded down to 128")),
  **_of(
    "head/long_spans",
    ("LongTokens.counts", "keyword", 0, "an integer divides as well"),
    ("LongTokens._total", "constant", 0, "the pieces have one shape"),
    ("LongTokens._total", "constant", 1, "the pieces have one shape"),
  ),
  **_of(
    "head/paired",
    ("paired_head.forward", "constant", 0, "the array carries a dtype, whatever its size"),
  ),
  **_of(
    "head/span_blocks",
    ("cut_into_blocks", "mask", 0, _NO_PAIR),
    ("cut_into_blocks.order", "mask", 0, "what it reads is selected away"),
    ("cut_into_blocks", "promotion", 0, "argsort gives int32 where float64 is off"),
    ("pairs_of_blocks", "bound", 0, "a gather stops at the last entry, which is selected away"),
    ("tokens_of_blocks", "bound", 0, "a gather stops at the last entry, which is selected away"),
    ("tokens_of_blocks", "mask", 0, _NO_PAIR),
    ("_total", "promotion", 0, "a product of bool and float is the float's"),
    ("BlockTokens.maxima", "detach", 0, "what is subtracted is added again"),
  ),
  **_of(
    "head/span_terms",
    ("Side.rows", "constant", 0, _NOT_READ),
    ("Side.labels_of", "constant", 0, _NOT_READ),
    ("Side.labels_of", "keyword", 0, _NOT_READ),
    ("Side.long_tokens", "promotion", 0, "the weight's values are of that dtype already"),
    ("TermsOfPairs.choose.of_chunk", "constant", 0, "the axis has one entry, which is read"),
    ("TermsOfPairs._teacher_chunk", "constant", 0, _NOT_READ),
    ("TermsOfPairs.long_terms", "promotion", 0, "a CPU adds bfloat16 with excess precision"),
    ("TermsOfPairs._summed", "detach", 0, "the head's own gradient leaves the stats out"),
  ),
  **_of(
    "head/tpu",
    ("_joined", "constant", 0, "the axis has one entry, which is read"),
    ("_by_lane", "axis", 0, "axis 1 is the last"),
    ("_by_lane", "constant", 0, "one lane more holds zeros, as it does anyway"),
    ("chunk_by_kernels", "constant", 0, "hidden states and their unembedding have one width"),
    ("kernel_chunk_size", "boundary", 0, "256 is a multiple of both units"),
  ),
  **_of("losses/adakd", ("adakd_terms", "detach", 0, _DETACHED_AGAIN)),
  **_of(
    "losses/distribution",
    ("EntropyDistribution.update", "detach", 0, "counts are integers: no gradient passes them"),
    ("EntropyDistribution.top_share", "detach", 0, _DETACHED_AGAIN),
    ("EntropyDistribution.top_share", "detach", 1, _DETACHED_AGAIN),
    ("EntropyDistribution.top_share", "mask", 0, _SELECTED_AWAY),
  ),
  **_of("losses/entropy", ("_minmax", "mask", 1, _SELECTED_AWAY)),
  **_of(
    "losses/cross_tokenizer",
    ("make_span_divergence.uld", "swap", 0, "a distance is the same in either order"),
  ),
  **_of(
    "losses/spans",
    ("_index", "mask", 0, "sums leave out other indices, too, and -1 reads the entry for none"),
  ),
  **_of(
    "losses/gradient_norm",
    (
      "_gradient_norm.total",
      "reduction",
      0,
      "only the ratio of two such norms is used",
    ),
  ),
  **_of("losses/focus", ("select_hardest", "detach", 0, _CHOOSES)),
  **_of("losses/entropy_weighting", ("student_entropy_of", "detach", 0, _DETACHED_AGAIN)),
  **_of(
    "losses/routing",
    ("top_tokens", "detach", 0, _CHOOSES),
    ("gather_indices", "detach", 0, _CHOOSES),
  ),
  **_of("losses/terms", ("token_terms", "detach", 0, _DETACHED_AGAIN)),
  **_of("losses/token_graph", ("nearest_neighbours", "detach", 0, _CHOOSES)),
}
