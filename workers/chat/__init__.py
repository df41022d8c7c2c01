"""From chat messages to token ids (`template.py`, read it first) and the end of a text (`stops.py`)."""
