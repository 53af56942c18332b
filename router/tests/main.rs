//! What the router promises, through its public face.
