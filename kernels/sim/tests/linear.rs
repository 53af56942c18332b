//! Tests of linear; see main.rs.
