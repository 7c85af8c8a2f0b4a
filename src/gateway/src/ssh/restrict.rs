//! What the gateway, and the options of a certificate, leave of a session's requests.

use russh::ChannelMsg;
use vendetta_proto::agent::ORIGINAL_COMMAND;
use vendetta_sshio::relay::RequestFilter;

use crate::access::Permissions;

/// A filter for a session under `permissions`.
#[must_use]
pub fn filter(permissions: &Permissions) -> RequestFilter {
    let permissions = permissions.clone();
    Box::new(move |request| restrict(&permissions, request))
}

fn restrict(permissions: &Permissions, request: ChannelMsg) -> Vec<ChannelMsg> {
    match request {
        ChannelMsg::RequestPty { want_reply, .. } if !permissions.pty => vec![refused(want_reply)],
        ChannelMsg::RequestX11 { want_reply, .. } if !permissions.x11_forwarding => {
            vec![refused(want_reply)]
        }
        ChannelMsg::AgentForward { want_reply } if !permissions.agent_forwarding => {
            vec![refused(want_reply)]
        }
        // An agent takes the gateway's word for it.
        ChannelMsg::SetEnv {
            want_reply,
            variable_name,
            ..
        } if variable_name == ORIGINAL_COMMAND => vec![refused(want_reply)],
        ChannelMsg::RequestShell { want_reply } => forced(permissions, want_reply, None, request),
        ChannelMsg::Exec {
            want_reply,
            ref command,
        } => {
            let original = String::from_utf8_lossy(command).into_owned();
            forced(permissions, want_reply, Some(original), request)
        }
        ChannelMsg::RequestSubsystem {
            want_reply,
            ref name,
        } => {
            let original = name.clone();
            forced(permissions, want_reply, Some(original), request)
        }
        other => vec![other],
    }
}

/// A request that every agent refuses, so that the refusal takes its place
/// among the replies: they are told apart by their order alone.
fn refused(want_reply: bool) -> ChannelMsg {
    ChannelMsg::SetEnv {
        want_reply,
        variable_name: String::new(),
        variable_value: String::new(),
    }
}

/// sshd_config(5), ForceCommand: the command replaces whatever was asked for,
/// which it finds in [`ORIGINAL_COMMAND`].
fn forced(
    permissions: &Permissions,
    want_reply: bool,
    original: Option<String>,
    request: ChannelMsg,
) -> Vec<ChannelMsg> {
    let Some(command) = &permissions.force_command else {
        return vec![request];
    };
    let mut requests = Vec::new();
    if let Some(original) = original {
        requests.push(ChannelMsg::SetEnv {
            want_reply: false,
            variable_name: ORIGINAL_COMMAND.to_owned(),
            variable_value: original,
        });
    }
    requests.push(ChannelMsg::Exec {
        want_reply,
        command: command.clone().into_bytes(),
    });
    requests
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Permissions {
        Permissions {
            pty: true,
            port_forwarding: true,
            agent_forwarding: true,
            x11_forwarding: true,
            force_command: None,
        }
    }

    #[test]
    fn a_plain_key_restricts_nothing() {
        let request = ChannelMsg::Exec {
            want_reply: true,
            command: b"true".to_vec(),
        };
        let forwarded = restrict(&all(), request);
        assert!(matches!(
            forwarded.as_slice(),
            [ChannelMsg::Exec { want_reply: true, command }] if command == b"true"
        ));
    }

    #[test]
    fn nobody_but_the_gateway_says_what_the_original_command_was() {
        let request = ChannelMsg::SetEnv {
            want_reply: true,
            variable_name: ORIGINAL_COMMAND.to_owned(),
            variable_value: "forged".to_owned(),
        };
        let forwarded = restrict(&all(), request);
        assert!(matches!(
            forwarded.as_slice(),
            [ChannelMsg::SetEnv { want_reply: true, variable_name, .. }] if variable_name.is_empty()
        ));
    }

    #[test]
    fn a_refused_pty_keeps_its_place_among_the_replies() {
        let permissions = Permissions {
            pty: false,
            ..all()
        };
        let request = ChannelMsg::RequestPty {
            want_reply: true,
            term: "xterm".to_owned(),
            col_width: 80,
            row_height: 24,
            pix_width: 0,
            pix_height: 0,
            terminal_modes: Vec::new(),
        };
        let forwarded = restrict(&permissions, request);
        assert!(matches!(
            forwarded.as_slice(),
            [ChannelMsg::SetEnv { want_reply: true, variable_name, .. }] if variable_name.is_empty()
        ));
    }

    #[test]
    fn a_forced_command_replaces_shell_exec_and_subsystem() {
        let permissions = Permissions {
            force_command: Some("true".to_owned()),
            ..all()
        };
        let requests = [
            ChannelMsg::RequestShell { want_reply: true },
            ChannelMsg::Exec {
                want_reply: true,
                command: b"rm -rf /".to_vec(),
            },
            ChannelMsg::RequestSubsystem {
                want_reply: true,
                name: "sftp".to_owned(),
            },
        ];
        for request in requests {
            let forwarded = restrict(&permissions, request);
            assert!(matches!(
                forwarded.last(),
                Some(ChannelMsg::Exec { want_reply: true, command }) if command == b"true"
            ));
        }
    }
}
