"""The Alembic environment with the tables of datapatterns."""
