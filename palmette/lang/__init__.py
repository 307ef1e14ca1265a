"""What an author calls: expressions, programs, states, and the session they run in."""
