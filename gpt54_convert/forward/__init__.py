"""The model itself, run by transformers' code on weights read from a lazy checkpoint, and text cut for it.

`torch_model` imports torch and transformers, `onnx_model` onnxruntime; everything else here is light.
"""
