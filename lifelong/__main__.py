"""`python -m lifelong`, which launchers of several processes start as a module."""

from lifelong.cli import main

if __name__ == "__main__":
    main()
