"""`python -m prism.cli`: as `python -m prism`."""

from prism.cli import main

if __name__ == "__main__":
    main()
