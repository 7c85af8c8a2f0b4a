//! What runs a machine's processor, and what is remembered of KVM on a node. Pure.

use std::time::Duration;

use tokio::time::Instant;
use vendetta_proto::spec::Accel;

use crate::node::Kvm;

/// How long an answer counts that may be another one at a better time.
const RETRY: Duration = Duration::from_secs(5 * 60);

/// What runs the machine's processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accelerator {
    Kvm,
    Tcg,
}

/// What is known of KVM on a node.
#[derive(Debug, Default)]
pub(super) struct Known(Option<(Kvm, Instant)>);

impl Known {
    /// What was found out at some time before, if that still counts.
    pub(super) fn before(kvm: Option<Kvm>, now: Instant) -> Self {
        Self(kvm.filter(|kvm| !kvm.may_change()).map(|kvm| (kvm, now)))
    }

    /// What was found out just now.
    pub(super) fn learn(&mut self, kvm: Kvm, now: Instant) {
        self.0 = Some((kvm, now));
    }

    /// What is known, for a machine that wants `accel`; none: KVM is to be tried (again).
    /// Who insists on KVM is not told that it once took too long.
    pub(super) fn recall(&self, accel: Accel, now: Instant) -> Option<&Kvm> {
        let (kvm, since) = self.0.as_ref()?;
        let fresh = accel != Accel::Kvm && now.duration_since(*since) < RETRY;
        (!kvm.may_change() || fresh).then_some(kvm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_took_too_long_once_is_tried_again_later_or_when_kvm_is_insisted_on() {
        let now = Instant::now();
        let soon = now + RETRY / 2;
        let later = now + RETRY;
        let mut known = Known::default();
        assert_eq!(known.recall(Accel::Auto, now), None);
        for kvm in [Kvm::Hangs, Kvm::Slow, Kvm::Busy] {
            assert_eq!(
                Known::before(Some(kvm.clone()), now).recall(Accel::Auto, now),
                None
            );
            known.learn(kvm.clone(), now);
            assert_eq!(known.recall(Accel::Auto, soon), Some(&kvm));
            assert_eq!(known.recall(Accel::Kvm, soon), None);
            assert_eq!(known.recall(Accel::Auto, later), None);
        }
        for kvm in [Kvm::Works, Kvm::Absent, Kvm::Fails("no".to_owned())] {
            known.learn(kvm.clone(), now);
            let before = Known::before(Some(kvm.clone()), now);
            for known in [&known, &before] {
                for accel in [Accel::Auto, Accel::Kvm] {
                    assert_eq!(known.recall(accel, later), Some(&kvm));
                }
            }
        }
    }
}
