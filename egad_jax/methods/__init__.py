"""Distillation methods to train with: pure functions behind one contract, `Method`.

The formulas are in `egad_jax.losses`; a method adds what lasts longer than a batch: running
distributions, controllers and parameters of its own. This package imports no library but jax.
"""

from __future__ import annotations

from egad_jax.methods.adakd import AdaKDState, make_adakd
from egad_jax.methods.egad import make_egad, make_vanilla_kd
from egad_jax.methods.entropy_weighting import make_ea_kd, make_se_kd
from egad_jax.methods.explicit_knowledge import make_aekt
from egad_jax.methods.method import Context, Method, SerialHead, SpanLoss, State, TokenLoss
from egad_jax.methods.relation_graph import make_trg
from egad_jax.methods.table import METHODS, TWO_TOKENIZERS, make_method
from egad_jax.methods.taid import make_taid
from egad_jax.methods.x_token import make_x_token

__all__ = [
  "METHODS",
  "TWO_TOKENIZERS",
  "AdaKDState",
  "Context",
  "Method",
  "SerialHead",
  "SpanLoss",
  "State",
  "TokenLoss",
  "make_adakd",
  "make_aekt",
  "make_ea_kd",
  "make_egad",
  "make_method",
  "make_se_kd",
  "make_taid",
  "make_trg",
  "make_vanilla_kd",
  "make_x_token",
]
