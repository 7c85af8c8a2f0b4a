//! Dependency direction.
