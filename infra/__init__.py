"""What runs it all: the `shrk` command, Kafka, PostgreSQL, migrations, benches, docs. Read cli.py first."""
