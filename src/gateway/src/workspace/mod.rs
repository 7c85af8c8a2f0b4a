//! Workspaces: what they are meant to be, what they are, and the work between.
//!
//! `state` is the pure state machine; one actor task a workspace runs it and is the
//! only writer of that workspace's row, container and files. [`Workspaces`] is
//! what the rest of the gateway sees.

mod activity;
mod actor;
mod attend;
mod callers;
mod check;
mod context;
mod entry;
mod error;
mod forges;
mod guests;
mod hook;
mod id;
mod idle;
mod inside;
mod manager;
mod operation;
mod provision;
mod restart;
mod service;
mod services;
mod spec;
mod state;
mod status;
mod supervise;
mod work;

pub use crate::ports::{
    Mapping as PortMapping, PortKey, PortState, PortStatus, Settings as PortSettings,
};
pub use activity::{Activity, InUse};
pub use check::{Wrong, is_variable_name};
pub use entry::NewConfig;
pub(crate) use error::Explain;
pub use error::{ErrorKind, WorkspaceError};
pub use guests::Pipe;
pub use id::WorkspaceId;
pub use inside::{ListeningStream, ServiceLogOptions};
pub use manager::{
    Agent, AgentTarget, Endpoint, LogOptions, LogStream, Settings, WorkspaceRef, Workspaces,
};
pub use operation::{Operation, Progress, ProgressSink, Step};
pub use service::{ServiceRequest, described};
pub use spec::{Overrides, Spec, WORKSPACE_DIR};
pub use state::{Desired, Found, Phase, Record};
pub use status::{Failure, WorkspaceStatus};
