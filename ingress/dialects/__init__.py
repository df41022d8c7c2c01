"""Each API surface as its own small adapter over the one core; none knows the others."""
