//! Brings the agent's executable to a node.
