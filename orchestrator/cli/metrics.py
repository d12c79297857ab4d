"""`metrics`: the job table as Prometheus text."""

import typer

from orchestrator.cli.app import app, settings_of


@app.command()
def metrics(ctx: typer.Context) -> None:
    """Print the job table as Prometheus text, for a textfile collector.

    A controller serves the same on loopback: xsweep run --metrics-port 9108

    \b
    Example:
      xsweep metrics > /var/lib/node_exporter/xsweep.prom.tmp
    """
    from db.engine import connect
    from orchestrator.metrics import as_text

    engine = connect(settings_of(ctx).database, read_only=True)
    typer.echo(as_text(engine), nl=False)
