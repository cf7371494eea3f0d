"""Smaller models out of large ones: whole layers, heads, channels, or single weights removed.

`step.Prune` is the pass.  `targets` decides the sizes, `spaces` says which axis of which weight counts what,
`layers/` and `scores` say what matters, `cut` makes the smaller checkpoint out of views on the source.
"""
