"""Kernels and engine on a GPU, against what the same GPU copies and multiplies: python -m benchmarks.gpu

    checks      every kernel against float64                                  nothing is measured
    paths       captured graphs = kernels one by one; overlapped loop = plain loop
    attention   decode, siblings of a fork, extend, against bytes and operations that cannot be avoided
    products    linear layers and experts, against reading their weights
    engine      steps, sampling, prefill and the whole engine on random weights
    peers       the same beside transformers
    tune        launch configurations beside the defaults; only when it is asked for

Needs torch, triton and numpy; transformers and flashinfer for their rows. Without a GPU it runs every row at tiny sizes
under Triton's interpreter, checks results, and measures nothing.
"""
