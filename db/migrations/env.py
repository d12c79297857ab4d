"""Runs the steps on the connection that `xsweep.db.engine.upgrade` hands over, in its transaction.

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
