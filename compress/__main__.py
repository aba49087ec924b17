"""`python -m compress`: the `edgefold` command where its script is not on the path."""

from compress.cli import main

if __name__ == "__main__":
    main(prog_name="edgefold")
