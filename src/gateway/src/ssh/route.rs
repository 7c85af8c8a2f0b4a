//! Where a login name leads. Pure: identity comes from the key, never from here.
//!
//! | login name | route |
//! |---|---|
//! | a workspace that the key may use | that workspace |
//! | `WORKSPACE+ENVUSER` | that workspace, as a user of its environment |
//! | `WORKSPACE+[ENVUSER]+TERMINAL` | the same; its agent knows what a terminal is |
//! | a registered user, or `vendetta` | the control plane |
//! | anything else | a control command when the exec line begins with one, else "no workspace" |

use vendetta_proto::name::RESERVED;

/// What a connection is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// Sessions in a workspace.
    Workspace {
        /// Its name.
        name: String,
        /// User of the environment; none: its default.
        user: Option<String>,
    },
    /// Control commands.
    Control,
    /// A name that is nothing the key may use. People's local user names come
    /// this way, since clients send them by default.
    Unknown {
        /// The name as sent.
        name: String,
    },
}

/// Separates the workspace from the user of its environment. Neither ':' nor
/// '/', which scp and rsync read as the start of a path.
const USER_SEPARATOR: char = '+';

/// Decides where `login` leads, given what the verified key may use and who is registered.
pub fn route(
    login: &str,
    may_use_workspace: impl Fn(&str) -> bool,
    is_user: impl Fn(&str) -> bool,
) -> Route {
    if may_use_workspace(login) {
        return Route::Workspace {
            name: login.to_owned(),
            user: None,
        };
    }
    if let Some((name, user)) = login.split_once(USER_SEPARATOR)
        && !user.is_empty()
        && may_use_workspace(name)
    {
        return Route::Workspace {
            name: name.to_owned(),
            user: Some(user.to_owned()),
        };
    }
    if login == RESERVED || is_user(login) {
        return Route::Control;
    }
    Route::Unknown {
        name: login.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decide(login: &str) -> Route {
        route(login, |name| name == "my-project", |name| name == "alice")
    }

    fn workspace(name: &str, user: Option<&str>) -> Route {
        Route::Workspace {
            name: name.to_owned(),
            user: user.map(str::to_owned),
        }
    }

    #[test]
    fn a_workspace_name_is_that_workspace() {
        assert_eq!(decide("my-project"), workspace("my-project", None));
    }

    #[test]
    fn a_user_of_the_environment_follows_a_plus() {
        assert_eq!(
            decide("my-project+dev"),
            workspace("my-project", Some("dev"))
        );
        assert_eq!(
            decide("my-project+a+b"),
            workspace("my-project", Some("a+b"))
        );
    }

    #[test]
    fn a_user_and_the_reserved_name_are_the_control_plane() {
        assert_eq!(decide("alice"), Route::Control);
        assert_eq!(decide("vendetta"), Route::Control);
    }

    #[test]
    fn anything_else_is_unknown() {
        for name in ["root", "my-projec", "my-project+", "+dev", "", "other+dev"] {
            assert_eq!(
                decide(name),
                Route::Unknown {
                    name: name.to_owned()
                }
            );
        }
    }

    proptest! {
        #[test]
        fn no_login_name_leads_to_a_workspace_the_key_may_not_use(login in ".*") {
            if let Route::Workspace { name, .. } = decide(&login) {
                prop_assert_eq!(name, "my-project");
            }
        }
    }
}
