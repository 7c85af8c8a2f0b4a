//! Regression tests of the patches in contrib/russh/patches, a module a
//! defect: each fails on russh without its patch.

mod support;

mod agent_request;
mod close_answered_by_consumer;
mod dropped_opener;
mod global_request_reply;
mod local_close;
mod open_failure_text;
mod other_requests;
mod pending_replies;
mod queue_limit;
mod rekey_allowance;
mod request_replies;
mod window;
mod write_while_reading;
mod writer_wakes;
