"""`serve`: a page to look at sweeps, on this machine alone."""

from typing import Annotated

import typer

from orchestrator.cli.app import app, settings_of

PORT = 8420


@app.command()
def serve(
    ctx: typer.Context,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of 127.0.0.1; 0 takes any that is free.")
    ] = PORT,
) -> None:
    """A page with sweeps, heat maps, jobs, logs and curves: on loopback, and only to look at.

    From another machine: ssh -L 8420:127.0.0.1:8420 HOST, then open http://127.0.0.1:8420

    \b
    Examples:
      xsweep serve
      xsweep serve --port 9000
    """
    from db.engine import connect, redacted
    from orchestrator.serve.pages import Site
    from orchestrator.serve.server import LOOPBACK, open_server
    from orchestrator.store import store_root
    from xsweep import SetupError

    settings = settings_of(ctx)
    engine = connect(settings.database, read_only=True)
    site = Site(engine, store_root(settings.store), redacted(settings.database))
    try:
        server = open_server(site.respond, port)
    except OSError as error:
        raise SetupError(
            f"port {port} of {LOOPBACK} cannot be used ({error.strerror}): choose another --port"
        ) from error
    typer.echo(f"http://{LOOPBACK}:{server.server_address[1]}  (Ctrl-C ends it)")
    with server:
        server.serve_forever()
