"""The operations of `kernels` as Triton kernels, one a file. Importing any of them imports triton."""
