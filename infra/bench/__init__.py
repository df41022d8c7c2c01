"""`make bench`: what Shiver adds to an engine, and what the gateway itself costs. Read __main__.py first.

Nothing is imported here: the servers of this package also run in environments that have nothing of ours.
"""
