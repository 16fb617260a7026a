"""``python -m dipct``: the command line, as ``torchrun`` starts it."""

from dipct.cli import main

if __name__ == "__main__":
    main()
