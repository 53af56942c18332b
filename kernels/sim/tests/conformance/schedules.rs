//! What a seed changes, and what it must not.
