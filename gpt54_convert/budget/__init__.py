"""Mixed precision with a budget: every tensor's grid, for the least loss at a size, or the reverse.

`calibrate.sensitivity` says what each tensor costs on each grid, `quantize.allocate` chooses, and here the
choice is held to what was asked: sizes are those of the finished files, losses are measured on calibration
text that the estimates never saw, and a uniform scheme of the same size that does better is taken instead.
"""
