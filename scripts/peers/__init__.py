"""Side-by-side runs; scripts/bench-peers is the entry."""
