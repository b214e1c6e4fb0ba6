"""What people see of a run: logs, the report, the model card."""
