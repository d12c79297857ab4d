"""Runs the migrations in `versions` on the connection that `xsweep.db.engine.upgrade` gives.

No target metadata: its naming convention would rename the constraints that the steps name in full.
"""

from alembic import context

from xsweep.db.schema import VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    version_table=VERSION_TABLE,
    transactional_ddl=True,
)

context.run_migrations()
