//! Tests of elementwise; see main.rs.
