"""One file for each family of models, which declares its `FAMILY`; `models.family` finds them."""
