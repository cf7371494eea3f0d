"""Where the worth of heads and channels comes from; each file beside this one is a source of evidence.

A file has `DESCRIPTION` and `evidence(checkpoint, spaces, context, text) -> Evidence`.
"""
