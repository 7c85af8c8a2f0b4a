//! What every provider must do, run against the real engines and the real agent.
//!
//! A scenario knows nothing of the provider it is run with, nor whether its node is
//! this machine or one behind ssh, near or far. A new provider joins with a
//! constructor of [`Subject`] and a word in [`contract`]'s use below; what only one
//! provider can do wrong is in a module of its own.

mod docker;
mod hardware;
mod lxc;
mod lxc_engines;
mod machine;
mod qemu;
mod scenarios;
mod subject;

use subject::Subject;

/// Makes each scenario a test of each provider.
macro_rules! contract {
    ($($provider:ident),*: $scenarios:tt) => {
        $(contract!(@provider $provider $scenarios);)*
    };
    (@provider $provider:ident { $($scenario:ident,)* }) => {
        mod $provider {
            use super::Subject;
            mod contract {
                use super::Subject;
                $(
                    #[tokio::test(flavor = "multi_thread")]
                    async fn $scenario() {
                        crate::scenarios::$scenario(&Subject::$provider()).await;
                    }
                )*
            }
        }
    };
}

mod of {
    use super::Subject;

    contract!(
        docker, host, docker_on_node, host_on_node,
        lxc_on_incus, lxc_on_lxd, lxc_on_node_with_incus, lxc_on_node_with_lxd,
        qemu, qemu_on_node: {
        what_does_not_exist_is_absent_and_its_removal_is_no_error,
        what_was_made_twice_is_there_once_and_answers,
        what_was_stopped_starts_again_with_its_disk,
        another_generation_replaces_the_environment_and_keeps_the_disk,
        destroyed_while_running_leaves_nothing,
        what_is_made_hard_to_remove_is_removed,
        the_environments_of_another_gateway_are_not_ours,
        what_ends_by_itself_is_reported,
        a_start_or_stop_by_anybody_is_reported,
        sessions_have_the_environment_and_directory_of_the_config,
        its_log_is_read_whole_by_its_last_lines_and_as_it_grows,
        calls_at_once_make_one_environment,
        work_cut_off_anywhere_is_done_again,
        an_agent_survives_the_provider_that_started_it,
    });

    contract!(docker_far_away, host_far_away, lxc_far_away: {
        what_ends_by_itself_is_reported,
        destroyed_while_running_leaves_nothing,
    });
}
