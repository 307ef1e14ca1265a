"""`palmette serve`: one engine behind HTTP.

A front process that reads requests and writes answers, an engine process that computes, killable workers that try
constraints, and a supervisor that owns them all. Only the engine process imports torch.
"""
