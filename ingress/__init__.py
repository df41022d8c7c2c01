"""The OpenAI-compatible HTTP front: admission, dispatch, metering. Read app.py first."""
