//! Whether a connection's proof still holds. A key or user that is removed
//! opens nothing any more, and what it had opened ends too.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use russh::Disconnect;
use tokio::sync::RwLock;
use tokio::time::{sleep, timeout};

use super::shared::Shared;
use crate::access::Principal;
use crate::store::Store;

/// How long commands that run when the key goes may take to answer: whoever
/// removes their own key is told that it is removed.
const ANSWER: Duration = Duration::from_secs(1);

/// How long the client may take to hear why it is cut off.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a connection came in with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// A registered key.
    Key,
    /// A certificate, which lasts as long as its user.
    Certificate,
}

/// Held, to read, by each command that is being answered.
pub type Answering = Arc<RwLock<()>>;

/// Ends the connection of `shared` when its proof no longer holds.
pub async fn watch(shared: Shared, proof: Proof) {
    lost(&shared.services.store, &shared.principal, proof).await;
    let principal = &shared.principal;
    tracing::info!(user = %principal.user, key = %principal.key_fingerprint, "cut off: key or user removed");
    // Who waits to write lets nobody begin another.
    let _ = timeout(ANSWER, shared.answering.write()).await;
    let goodbye = async {
        let reason = "the key or the user it belongs to was removed".to_owned();
        let client = &shared.client;
        let told = client.disconnect(Disconnect::ByApplication, reason, String::new());
        let _ = told.await;
    };
    let _ = timeout(PATIENCE, goodbye).await;
    sleep(PATIENCE).await;
    shared.end();
}

/// Waits until `principal` is no longer who the proof said it was.
async fn lost(store: &Store, principal: &Principal, proof: Proof) {
    let mut changes = store.people_changes();
    loop {
        changes.borrow_and_update();
        let role = match proof {
            Proof::Key => store
                .principal_for_key(&principal.key_fingerprint)
                .filter(|now| now.user == principal.user)
                .map(|now| now.role),
            Proof::Certificate => store.user(&principal.user).map(|user| user.role),
        };
        if role != Some(principal.role) {
            return;
        }
        if changes.changed().await.is_err() {
            // The store is gone, and the gateway with it.
            pending::<()>().await;
        }
    }
}
