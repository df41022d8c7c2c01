"""The books for finance's own tools: hledger, beancount, CSV; and the rendering of statements.

Read first `transactions.py` (what is exported), then `write.py` (in which order). A form turns transactions into text:
`hledger.py`, `beancount.py`, `csvs.py`. All of it is pure: no file, clock or network; the shell is
`ledger/commands_exports.py`, with `ledger/spool.py` for sorting more than memory should hold.
"""
