"""What crosses a process border: log events, jobs, replies, heartbeats, topic names, errors. Read events.py first."""
