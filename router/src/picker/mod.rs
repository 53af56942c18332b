//! The endpoint picker: a gateway asks where a request should go, and carries it there itself.
//!
//! ```text
//!  client ─▶ Envoy ─┬── ext_proc: headers, body ──▶ picker ─▶ pool (admission, decision, book)
//!                   │◀─ x-gateway-destination-endpoint ─┘
//!                   └──────────── the request ─────────▶ replica
//! ```
//!
//! The protocol of the Gateway API Inference Extension: the choice is told as a request header and as dynamic
//! metadata, first choice first and others after it, for the gateway to fall back on; a subset hint in the metadata
//! bounds who may be chosen. Decisions, queue and book are those of the other faces. What the gateway tells of the
//! answer, its status and its body, ends the reservation; a stream that breaks off ends it as well.
//!
//! Limits: bodies whole (the prompt decides), as `FULL_DUPLEX_STREAMED` or `BUFFERED`; a gateway that sends none is
//! answered by load alone.

mod exchange;
mod message;
mod serve;

pub use exchange::Exchange;
pub use serve::serve;
