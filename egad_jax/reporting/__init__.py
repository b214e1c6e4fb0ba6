"""Logs, the report and the model card of a run."""
