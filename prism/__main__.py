"""`python -m prism`: the command line, as `prism` has it."""

from prism.cli import main

if __name__ == "__main__":
    main()
