"""Kernels and engine on a GPU, against what the same GPU copies and multiplies: python -m benchmarks.gpu

Needs torch, triton and numpy; transformers and flashinfer for their rows. Without a GPU it runs every row at tiny sizes
under Triton's interpreter, checks results, and measures nothing.
"""
