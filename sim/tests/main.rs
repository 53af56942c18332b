//! What the simulator promises: one seed, one run.
