"""How a student compares with its teacher, in the measures of the papers. Nothing here chooses a model."""
