//! The agent: an SSH server inside an environment.
