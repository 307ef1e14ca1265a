"""The embedded model on a CPU beside llama.cpp, vLLM and transformers: `python -m benchmarks.peers`."""
