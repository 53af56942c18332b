//! Tests of attend; see main.rs.
