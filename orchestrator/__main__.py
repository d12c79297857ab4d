"""The command `xsweep`, also as `python -m xsweep.orchestrator`."""

from xsweep.orchestrator.runtime.import_path import put_user_folders_last


def main() -> None:
    """Run the command line, with none of its imports replaced by a user's module."""
    put_user_folders_last()
    from xsweep.orchestrator.cli import main as run_command

    run_command()


if __name__ == "__main__":
    main()
