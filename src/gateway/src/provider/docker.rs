//! Containers of a Docker engine.
/// A Docker engine on a node.
#[derive(Debug)]
pub struct Docker;
