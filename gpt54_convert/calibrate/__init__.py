"""Running the float model on text, layer by layer, to learn which weights matter and how to round them.

`layers`, `collect` and `walk` import torch; the rest is light.
"""
