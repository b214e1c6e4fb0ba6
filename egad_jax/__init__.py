"""Entropy-guided adaptive distillation of language models in JAX."""
