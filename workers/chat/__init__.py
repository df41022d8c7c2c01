"""From messages to ids (`template.py`, read it first), what the answer may be (`tools.py`, `schemas.py`: tool calls and
JSON as grammars), and the way back: tool calls out of text (`calls.py`) and its end (`stops.py`)."""
