"""The node: pulls jobs from its mailbox, runs an engine, streams tokens back. Read agent.py first."""
