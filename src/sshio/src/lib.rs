//! What both SSH ends of vendetta share: keys, transport settings and the relay.

pub mod control;
pub mod cut;
pub mod keys;
pub mod local_stream;
pub mod read_ahead;
pub mod relay;
pub mod request;
pub mod splice;
pub mod transport;
pub mod workers;
