//! The same contracts under simulated time: fleets of replicas, networks and faults, one seed a run; and the
//! player of traces behind `quire replay`.
