//! Tests of sampling; see main.rs.
