"""Statements to a PostgreSQL server that no transaction may hold."""

from sqlalchemy import create_engine, text


def administer(url: str, *statements: str) -> None:
    """Run statements outside of transactions."""
    engine = create_engine(
        url.replace("postgresql://", "postgresql+psycopg://"), isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()
