//! Directories of the node itself.
/// Directories of the node itself.
#[derive(Debug)]
pub struct Host;
