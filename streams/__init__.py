"""The Faust projection of the ledger log into PostgreSQL, and the expiry of abandoned requests. Read app.py first."""
