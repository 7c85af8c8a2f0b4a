use std::os::unix::fs::PermissionsExt;

use serde_json::json;
use vendetta_proto::spec::{ProjectConfig, ProviderKind};
use vendetta_proto::{NodeName, WorkspaceName};
use vendetta_sshio::keys::{PrivateKey, PublicKey};

use super::*;
use crate::access::Role;
use crate::workspace::{Desired, ErrorKind, Record, WorkspaceId};

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("state/vendetta.db")).unwrap();
    (dir, store)
}

fn key() -> PublicKey {
    PrivateKey::generate_ed25519("test").unwrap().public()
}

fn name(text: &str) -> UserName {
    text.parse().unwrap()
}

fn workspace(name: &str, owner: &str) -> WorkspaceRow {
    WorkspaceRow {
        id: WorkspaceId::random(),
        name: name.parse::<WorkspaceName>().unwrap(),
        owner: owner.parse().unwrap(),
        node: NodeName::local(),
        provider: ProviderKind::Docker,
        config: ProjectConfig::default(),
        record: Record::NEW,
        provisioned: 0,
        begun: false,
        host_key: "secret".to_owned(),
        created: people::now(),
    }
}

#[tokio::test]
async fn the_database_and_its_directory_are_private() {
    let (dir, store) = store();
    store.add_user(&name("alice"), Role::Admin).await.unwrap();
    let state = dir.path().join("state");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&state), 0o700);
    for entry in fs::read_dir(&state).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
}

#[test]
fn a_directory_that_others_can_read_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let error = Store::open(&dir.path().join("vendetta.db")).unwrap_err();
    assert!(error.to_string().contains("chmod 700"), "{error}");
}

#[test]
fn a_file_of_a_newer_version_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state/vendetta.db");
    let id = Store::open(&path).unwrap().gateway_id().to_owned();
    let raw = Connection::open(&path).unwrap();
    let version = |row: &rusqlite::Row<'_>| row.get::<_, i64>(0);
    let ours = raw
        .pragma_query_value(None, "user_version", version)
        .unwrap();
    raw.pragma_update(None, "user_version", 99).unwrap();
    assert!(matches!(
        Store::open(&path),
        Err(StoreError::Newer { found: 99, .. })
    ));
    raw.pragma_update(None, "user_version", ours).unwrap();
    assert_eq!(Store::open(&path).unwrap().gateway_id(), id);
}

#[test]
fn a_file_that_is_no_database_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let path = dir.path().join("vendetta.db");
    fs::write(
        &path,
        "this is not SQLite, and long enough to tell".repeat(50),
    )
    .unwrap();
    assert!(matches!(Store::open(&path), Err(StoreError::Sql { .. })));
}

#[tokio::test]
async fn what_was_saved_is_there_when_opened_again() {
    let (dir, store) = store();
    let (user, key) = (name("alice"), key());
    store.add_user(&user, Role::Admin).await.unwrap();
    store.add_key(&user, &key, "laptop").await.unwrap();
    let mut row = workspace("web", "alice");
    row.config.env.insert("A".to_owned(), "b".to_owned());
    store.add_workspace(&row).await.unwrap();
    row.record = Record {
        desired: Desired::Running,
        generation: 3,
        boot: 7,
    };
    store.save_record(&row.id, row.record).await.unwrap();
    // Opened beside the first, as after a kill: nothing waits for a clean close.
    let again = Store::open(&dir.path().join("state/vendetta.db")).unwrap();
    assert_eq!(again.workspaces().await.unwrap(), [row]);
    assert_eq!(again.users(), store.users());
    assert_eq!(again.keys(&user), store.keys(&user));
    let principal = again.principal_for_key(&key.fingerprint()).unwrap();
    assert_eq!(
        (principal.user.clone(), principal.role),
        (user, Role::Admin)
    );
}

#[tokio::test]
async fn users_and_workspaces_share_one_name_space() {
    let (_dir, store) = store();
    store.add_user(&name("alice"), Role::Admin).await.unwrap();
    store
        .add_workspace(&workspace("web", "alice"))
        .await
        .unwrap();
    let taken = |result| matches!(result, Err(StoreError::NameTaken { .. }));
    assert!(taken(
        store.add_workspace(&workspace("alice", "alice")).await
    ));
    assert!(taken(store.add_workspace(&workspace("web", "alice")).await));
    assert!(taken(
        store.add_user(&name("web"), Role::Member).await.map(drop)
    ));
    assert!(taken(
        store.add_user(&name("alice"), Role::Member).await.map(drop)
    ));
    assert_eq!(store.users().len(), 1);
}

#[tokio::test]
async fn a_key_belongs_to_one_user_and_is_gone_with_them() {
    let (_dir, store) = store();
    let key = key();
    for user in ["alice", "bob"] {
        store.add_user(&name(user), Role::Member).await.unwrap();
    }
    store.add_key(&name("alice"), &key, "").await.unwrap();
    let error = store.add_key(&name("bob"), &key, "").await.unwrap_err();
    assert!(matches!(error, StoreError::KeyTaken { user, .. } if user == name("alice")));
    assert!(matches!(
        store.add_key(&name("carol"), &key, "").await,
        Err(StoreError::NoUser(_))
    ));
    store.remove_user(&name("alice")).await.unwrap();
    assert!(store.principal_for_key(&key.fingerprint()).is_none());
    store.add_key(&name("bob"), &key, "").await.unwrap();
}

#[tokio::test]
async fn a_key_is_removed_by_the_beginning_of_its_fingerprint() {
    let (_dir, store) = store();
    let bob = name("bob");
    store.add_user(&bob, Role::Member).await.unwrap();
    let keys = [key(), key()];
    for key in &keys {
        store.add_key(&bob, key, "").await.unwrap();
    }
    assert!(matches!(
        store.remove_key(&bob, "").await,
        Err(StoreError::NoKey { .. })
    ));
    assert!(matches!(
        store.remove_key(&bob, "SHA256:").await,
        Err(StoreError::NoKey { .. })
    ));
    let beginning = &keys[0].fingerprint()[..20];
    let removed = store.remove_key(&bob, beginning).await.unwrap();
    assert_eq!(removed.fingerprint, keys[0].fingerprint());
    assert!(store.principal_for_key(&keys[0].fingerprint()).is_none());
    assert!(store.principal_for_key(&keys[1].fingerprint()).is_some());
}

#[tokio::test]
async fn the_last_admin_and_its_last_key_stay() {
    let (_dir, store) = store();
    let (alice, bob) = (name("alice"), name("bob"));
    store.add_user(&alice, Role::Admin).await.unwrap();
    store.add_user(&bob, Role::Admin).await.unwrap();
    let first = store.add_key(&alice, &key(), "").await.unwrap();
    // Bob is an admin, but has no key to log in with.
    for refused in [
        store.remove_user(&alice).await,
        store.remove_key(&alice, &first.fingerprint).await.map(drop),
    ] {
        assert!(matches!(refused, Err(StoreError::LastAdmin(_))));
    }
    assert!(store.principal_for_key(&first.fingerprint).is_some());
    store.add_key(&bob, &key(), "").await.unwrap();
    store.remove_user(&alice).await.unwrap();
}

#[tokio::test]
async fn a_user_with_workspaces_stays() {
    let (_dir, store) = store();
    store.add_user(&name("bob"), Role::Member).await.unwrap();
    let row = workspace("web", "bob");
    store.add_workspace(&row).await.unwrap();
    let error = store.remove_user(&name("bob")).await.unwrap_err();
    assert!(error.to_string().contains("web"), "{error}");
    assert_eq!(error.kind(), ErrorKind::Conflict);
    store.forget_workspace(&row.id).await.unwrap();
    store.forget_workspace(&row.id).await.unwrap();
    store.remove_user(&name("bob")).await.unwrap();
    assert!(matches!(
        store.remove_user(&name("bob")).await,
        Err(StoreError::NoUser(_))
    ));
}

#[tokio::test]
async fn audit_events_come_back_newest_first() {
    let (dir, store) = store();
    for n in 0..1000 {
        store.audit(AuditEvent {
            user: (n % 2 == 0).then(|| name("alice")),
            event: "login",
            detail: json!({ "n": n }),
        });
    }
    drop(store); // waits for what is queued
    let again = Store::open(&dir.path().join("state/vendetta.db")).unwrap();
    let log = again.audit_log(5000).await.unwrap();
    assert_eq!(log.len(), 1000);
    assert_eq!(log[0].detail, json!({ "n": 999 }));
    assert_eq!(log[999].user.as_deref(), Some("alice"));
}

fn node(name: &str, jump: Option<&str>) -> NodeRow {
    NodeRow {
        name: name.parse().unwrap(),
        user: "dev".to_owned(),
        host: format!("{name}.example.org"),
        port: 2222,
        jump: jump.map(|name| name.parse().unwrap()),
        host_key: key(),
        allow_host: true,
        probe: json!({ "arch": "x86_64" }),
        created: people::now(),
    }
}

#[tokio::test]
async fn a_node_is_read_as_it_was_saved_and_saved_again_is_changed() {
    let (_dir, store) = store();
    let mut row = node("n1", None);
    store.save_node(&row).await.unwrap();
    assert_eq!(store.nodes().await.unwrap(), [row.clone()]);
    row.port = 22;
    row.host_key = key();
    store.save_node(&row).await.unwrap();
    assert_eq!(store.nodes().await.unwrap(), [row]);
}

#[tokio::test]
async fn a_renamed_node_takes_what_refers_to_it_along() {
    let (_dir, store) = store();
    store.add_user(&name("alice"), Role::Admin).await.unwrap();
    store.save_node(&node("n1", None)).await.unwrap();
    store.save_node(&node("n2", Some("n1"))).await.unwrap();
    let mut on_it = workspace("ws", "alice");
    on_it.node = "n1".parse().unwrap();
    store.add_workspace(&on_it).await.unwrap();
    let rename = |from: &str, to: &str| {
        let (store, from, to) = (store.clone(), from.parse().unwrap(), to.parse().unwrap());
        async move { store.rename_node(&from, &to).await }
    };
    assert!(matches!(
        rename("n1", "n2").await,
        Err(StoreError::NameTaken { .. })
    ));
    assert!(matches!(
        rename("n1", "local").await,
        Err(StoreError::NameTaken { .. })
    ));
    assert!(matches!(
        rename("n3", "n4").await,
        Err(StoreError::NoNode(_))
    ));
    rename("n1", "big").await.unwrap();
    let nodes = store.nodes().await.unwrap();
    assert_eq!(nodes[1].jump.as_ref().unwrap().as_str(), "big");
    assert_eq!(store.workspaces().await.unwrap()[0].node.as_str(), "big");
}

#[tokio::test]
async fn a_node_in_use_is_not_removed() {
    let (_dir, store) = store();
    store.add_user(&name("alice"), Role::Admin).await.unwrap();
    store.save_node(&node("n1", None)).await.unwrap();
    store.save_node(&node("n2", Some("n1"))).await.unwrap();
    let mut on_it = workspace("ws", "alice");
    on_it.node = "n1".parse().unwrap();
    store.add_workspace(&on_it).await.unwrap();
    let (n1, n2) = ("n1".parse().unwrap(), "n2".parse().unwrap());
    let refused = store.remove_node(&n1).await.unwrap_err().to_string();
    assert!(
        refused.contains("ws") && refused.contains("n2"),
        "{refused}"
    );
    store.remove_node(&n2).await.unwrap();
    store.forget_workspace(&on_it.id).await.unwrap();
    store.remove_node(&n1).await.unwrap();
    assert!(matches!(
        store.remove_node(&n1).await,
        Err(StoreError::NoNode(_))
    ));
}

#[tokio::test]
async fn a_port_is_given_once_and_free_again_when_its_workspace_is_forgotten() {
    let (dir, store) = store();
    store.add_user(&name("alice"), Role::Admin).await.unwrap();
    let (one, two) = (workspace("one", "alice"), workspace("two", "alice"));
    for row in [&one, &two] {
        store.add_workspace(row).await.unwrap();
    }
    let give = |row: &WorkspaceRow, key: &str, port: u16| {
        let (store, id, key) = (store.clone(), row.id.clone(), key.to_owned());
        async move {
            let choose = move |held: &[PortRow]| {
                let given = vec![(key, port)];
                (
                    PortChange {
                        given,
                        ..PortChange::default()
                    },
                    held.len(),
                )
            };
            store.assign_ports(&id, choose).await
        }
    };
    assert_eq!(give(&one, "db", 20000).await.unwrap(), 0);
    assert_eq!(give(&two, "db", 20001).await.unwrap(), 1);
    assert!(give(&two, "web", 20000).await.is_err(), "it is given");
    assert!(give(&two, "db", 20002).await.is_err(), "it has one");
    let again = Store::open(&dir.path().join("state/vendetta.db")).unwrap();
    let rows = again.ports().await.unwrap();
    let told: Vec<_> = rows
        .iter()
        .map(|row| (row.host_port, row.name.as_str(), row.key.as_str()))
        .collect();
    assert_eq!(told, [(20000, "one", "db"), (20001, "two", "db")]);
    let swap = |_: &[PortRow]| {
        let (released, given) = ([20001, 20000].into(), vec![("db".to_owned(), 20005)]);
        (PortChange { released, given }, ())
    };
    store.assign_ports(&two.id, swap).await.unwrap();
    let ports = store.ports().await.unwrap();
    let ports: Vec<u16> = ports.iter().map(|row| row.host_port).collect();
    assert_eq!(ports, [20000, 20005], "only its own are released");
    store.forget_workspace(&one.id).await.unwrap();
    assert_eq!(store.ports().await.unwrap().len(), 1);
    assert_eq!(give(&two, "web", 20000).await.unwrap(), 1);
}

#[tokio::test]
async fn workspaces_of_an_older_file_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let path = dir.path().join("vendetta.db");
    let raw = Connection::open(&path).unwrap();
    // Before `desired` could be 'idle'.
    for migration in &schema::MIGRATIONS[..3] {
        raw.execute_batch(migration).unwrap();
    }
    raw.execute_batch(
        "INSERT INTO users VALUES ('alice', 'admin', 0);
         INSERT INTO workspaces (id, name, owner, node, provider, config, desired, generation,
                                 boot, host_key, created, provisioned)
         VALUES ('01234567', 'old', 'alice', 'local', 'docker', '{}', 'down', 2, 3,
                 'secret', 4, 1);
         PRAGMA user_version = 3;",
    )
    .unwrap();
    drop(raw);
    let store = Store::open(&path).unwrap();
    let rows = store.workspaces().await.unwrap();
    let [row] = &rows[..] else { panic!("{rows:?}") };
    let mut record = Record {
        desired: Desired::Down,
        generation: 2,
        boot: 3,
    };
    assert_eq!((row.name.as_str(), row.record), ("old", record));
    assert_eq!((row.provisioned, row.created.as_millisecond()), (1, 4));
    assert!(row.begun, "one that was started may be there");
    let new = workspace("new", "alice");
    store.add_workspace(&new).await.unwrap();
    assert_eq!(store.workspaces().await.unwrap()[0], new);
    store.save_begun(&new.id).await.unwrap();
    assert!(store.workspaces().await.unwrap()[0].begun);
    store.forget_workspace(&new.id).await.unwrap();
    record.desired = Desired::Idle;
    store.save_record(&row.id, record).await.unwrap();
    assert_eq!(store.workspaces().await.unwrap()[0].record, record);
    // What guards the table is there as before.
    assert!(
        store
            .add_workspace(&workspace("old", "alice"))
            .await
            .is_err()
    );
    assert!(store.remove_user(&name("alice")).await.is_err());
}
