"""Passes that change a model's weights and keep its function, so that the weights quantize better."""
