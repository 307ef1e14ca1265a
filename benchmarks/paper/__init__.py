"""The eleven workloads of the SGLang paper (arXiv 2312.07104, section 6), as Palmette programs, with its ablations."""
