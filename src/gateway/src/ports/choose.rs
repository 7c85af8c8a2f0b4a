//! Which port of the gateway's machine a workspace is given; pure.
//!
//! What a workspace has it keeps, unless its config does not want it any more or
//! wishes for another. A wish comes before the range, so that the
//! range never gives away what the same config wishes for. Of the range the
//! lowest port is given that leads nowhere yet and that nothing else listens on.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use super::{PortKey, Wanted};
use crate::store::PortRow;
use crate::workspace::WorkspaceId;

/// Ports below this one need privileges (ip(7)) and are the machine's own.
const UNPRIVILEGED: u16 = 1024;

/// Why a port is not given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The wish leads into another workspace already.
    Held(PortRow),
    /// Something else of the same workspace has it.
    Twice {
        /// The port.
        port: u16,
        /// What has it.
        by: PortKey,
    },
    /// Some program listens on the wish.
    Taken(u16),
    /// The wish is below 1024.
    Privileged(u16),
    /// Nothing is left of the range.
    Full,
}

/// What a workspace is given besides what it keeps.
#[derive(Debug, Default)]
pub struct Choice {
    /// What it has and does not keep.
    pub released: BTreeSet<u16>,
    pub given: Vec<(PortKey, u16)>,
    pub refused: Vec<(PortKey, Refusal)>,
}

/// Chooses for the workspace `id`; `rows` are all ports that lead somewhere.
pub fn choose(
    range: &RangeInclusive<u16>,
    wanted: &[Wanted],
    id: &WorkspaceId,
    rows: &[PortRow],
    mut is_free: impl FnMut(u16) -> bool,
) -> Choice {
    let is_for = |row: &PortRow, one: &Wanted| {
        let fits = match one.wish {
            Some(wish) => wish == row.host_port,
            None => wanted.iter().all(|other| other.wish != Some(row.host_port)),
        };
        row.workspace == *id && row.key == one.key.as_word() && fits
    };
    let (held, released): (Vec<&PortRow>, Vec<&PortRow>) = rows
        .iter()
        .partition(|row| row.workspace != *id || wanted.iter().any(|wanted| is_for(row, wanted)));
    let has = |wanted: &Wanted| held.iter().any(|row| is_for(row, wanted));
    let new: Vec<&Wanted> = wanted.iter().filter(|wanted| !has(wanted)).collect();
    let held: BTreeMap<u16, &PortRow> = held.iter().map(|row| (row.host_port, *row)).collect();
    let mut choice = Choice {
        released: released.iter().map(|row| row.host_port).collect(),
        ..Choice::default()
    };
    let mut taken: BTreeMap<u16, PortKey> = BTreeMap::new();
    for wanted in &new {
        let Some(port) = wanted.wish else { continue };
        let refusal = if port < UNPRIVILEGED {
            Some(Refusal::Privileged(port))
        } else if let Some(row) = held.get(&port) {
            Some(Refusal::Held((*row).clone()))
        } else if let Some(by) = taken.get(&port) {
            let by = by.clone();
            Some(Refusal::Twice { port, by })
        } else if !is_free(port) {
            Some(Refusal::Taken(port))
        } else {
            None
        };
        match refusal {
            Some(refusal) => choice.refused.push((wanted.key.clone(), refusal)),
            None => {
                taken.insert(port, wanted.key.clone());
                choice.given.push((wanted.key.clone(), port));
            }
        }
    }
    // What is released last of all, so that whoever knows it does not reach another service.
    let (fresh, stale): (Vec<u16>, Vec<u16>) =
        (range.clone()).partition(|port| !choice.released.contains(port));
    let mut rest = fresh.into_iter().chain(stale);
    for wanted in new.iter().filter(|wanted| wanted.wish.is_none()) {
        let unused = |port: &u16| !held.contains_key(port) && !taken.contains_key(port);
        match rest.find(|port| unused(port) && is_free(*port)) {
            Some(port) => choice.given.push((wanted.key.clone(), port)),
            None => choice.refused.push((wanted.key.clone(), Refusal::Full)),
        }
    }
    choice
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const RANGE: RangeInclusive<u16> = 2000..=2009;

    fn key(number: u16) -> PortKey {
        PortKey::Service(format!("s{number}").parse().unwrap())
    }

    fn wanted(number: u16, wish: Option<u16>) -> Wanted {
        Wanted {
            key: key(number),
            port: number,
            wish,
            http: false,
        }
    }

    fn row(host_port: u16, workspace: &WorkspaceId, key: &PortKey) -> PortRow {
        PortRow {
            host_port,
            workspace: workspace.clone(),
            name: "other".parse().unwrap(),
            owner: "alice".parse().unwrap(),
            key: key.as_word(),
        }
    }

    /// A wish: none, one of the range, or one beside it.
    fn wish() -> impl Strategy<Value = Option<u16>> {
        prop_oneof![
            3 => Just(None),
            2 => (1998..2012u16).prop_map(Some),
            1 => Just(Some(80)),
        ]
    }

    proptest! {
        /// Whatever is held by whom and taken by what: everything wanted is
        /// either kept, given or refused; what is kept is what was wished for,
        /// if anything was; what is given is free, nobody's, given once, and
        /// what was wished for or of the range; nothing is refused that could
        /// have been given, and what is not wanted is released.
        #[test]
        fn a_choice_is_sound_and_complete(
            wishes in prop::collection::vec(wish(), 0..8),
            others in prop::collection::btree_set(1998..2012u16, 0..6),
            own in prop::collection::btree_map(0..8u16, 1998..2012u16, 0..4),
            busy in prop::collection::btree_set(1998..2012u16, 0..6),
        ) {
            let (id, other) = (WorkspaceId::random(), WorkspaceId::random());
            let all: Vec<Wanted> =
                (0..).zip(&wishes).map(|(n, wish)| wanted(n, *wish)).collect();
            let ports: BTreeSet<u16> = own.values().copied().collect();
            prop_assume!(ports.len() == own.len() && ports.is_disjoint(&others));
            let keeps = |n: u16, port: u16| {
                wishes.get(usize::from(n)).is_some_and(|wish| match wish {
                    Some(wish) => *wish == port,
                    None => !wishes.contains(&Some(port)),
                })
            };
            let kept: BTreeSet<u16> =
                own.iter().filter(|(n, port)| keeps(**n, **port)).map(|(_, port)| *port).collect();
            let mut rows: Vec<PortRow> =
                others.iter().map(|port| row(*port, &other, &key(99))).collect();
            rows.extend(own.iter().map(|(n, port)| row(*port, &id, &key(*n))));
            let free = |port: u16| !busy.contains(&port);
            let choice = choose(&RANGE, &all, &id, &rows, free);

            prop_assert_eq!(&choice.released, &(&ports - &kept));
            let given: BTreeMap<PortKey, u16> = choice.given.iter().cloned().collect();
            let refused: BTreeMap<PortKey, Refusal> = choice.refused.iter().cloned().collect();
            let distinct: BTreeSet<u16> = given.values().copied().collect();
            prop_assert_eq!(distinct.len(), choice.given.len());
            for wanted in &all {
                let had = own.get(&wanted.port).is_some_and(|port| kept.contains(port));
                let count = usize::from(had)
                    + usize::from(given.contains_key(&wanted.key))
                    + usize::from(refused.contains_key(&wanted.key));
                prop_assert_eq!(count, 1, "{:?}", wanted);
                if let Some(port) = given.get(&wanted.key) {
                    prop_assert!(free(*port) && !others.contains(port) && !kept.contains(port));
                    match wanted.wish {
                        Some(wish) => prop_assert_eq!(wish, *port),
                        None => prop_assert!(RANGE.contains(port)),
                    }
                }
            }
            for (key, refusal) in &refused {
                let sound = match refusal {
                    // Two wishes for one port, of which one has it.
                    Refusal::Held(row) if kept.contains(&row.host_port) => {
                        wishes.iter().filter(|wish| **wish == Some(row.host_port)).count() > 1
                    }
                    Refusal::Held(row) => others.contains(&row.host_port),
                    Refusal::Twice { port, by } => by != key && given.get(by) == Some(port),
                    Refusal::Taken(port) => busy.contains(port),
                    Refusal::Privileged(port) => *port < UNPRIVILEGED,
                    Refusal::Full => RANGE
                        .into_iter()
                        .all(|port| !free(port) || others.contains(&port) || kept.contains(&port) || distinct.contains(&port)),
                };
                prop_assert!(sound, "{:?}: {:?}", key, refusal);
            }
        }
    }

    #[test]
    fn a_wish_comes_before_the_range_and_the_lowest_is_given() {
        let id = WorkspaceId::random();
        let all = [wanted(1, None), wanted(2, Some(2000)), wanted(3, None)];
        let choice = choose(&RANGE, &all, &id, &[], |port| port != 2001);
        let expected = [(key(2), 2000), (key(1), 2002), (key(3), 2003)];
        assert_eq!(choice.given, expected);
    }
}
