//! The sockets: a publisher that speaks ZMTP as engines do, and loses batches, stops and starts anew.

mod publisher;
mod zmq;
