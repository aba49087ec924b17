"""The verbs of the `edgefold` command, by what they take. Nothing heavy is imported before a verb runs."""
