//! What both SSH ends share.
