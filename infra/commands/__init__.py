"""The commands that infra brings to `shrk`, one module each."""
