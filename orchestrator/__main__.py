"""`python -m xsweep.orchestrator` is the command `xsweep`."""

from xsweep.orchestrator.cli import main

if __name__ == "__main__":
    main()
