"""The fold over columns: see ledger/vector/fold.py."""
