//! The audit log: who did what, when. Written by a thread of its own.

use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use jiff::Timestamp;
use rusqlite::{Connection, params};
use serde::Serialize;
use serde_json::Value;
use vendetta_proto::UserName;

use super::people::{now, timestamp};
use super::{Store, StoreError, schema};

/// Events that may wait for the disk.
const QUEUE: usize = 4096;

/// Events written in one transaction, at most.
const BATCH: usize = 512;

/// Something worth remembering.
#[derive(Debug, Clone)]
pub struct AuditEvent {
    /// Who did it, when known.
    pub user: Option<UserName>,
    /// What: "login", "command", "session", "forward", …
    pub event: &'static str,
    /// Particulars, a JSON object; never a secret.
    pub detail: Value,
}

/// Something remembered.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AuditRecord {
    /// When.
    pub at: Timestamp,
    /// Who, when known.
    pub user: Option<String>,
    /// What.
    pub event: String,
    /// Particulars.
    pub detail: Value,
}

type Entry = (Timestamp, AuditEvent);

/// The queue and the thread at its other end, which drains it before it ends.
#[derive(Debug)]
pub(super) struct Log {
    queue: Option<SyncSender<Entry>>,
    thread: Option<JoinHandle<()>>,
}

impl Log {
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let connection = schema::connect(path)?;
        // A power cut may take the last events; a crash of ours does not.
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        let (queue, entries) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || write_all(connection, &entries))
            .map_err(|source| StoreError::Io {
                path: path.to_owned(),
                source,
            })?;
        Ok(Self {
            queue: Some(queue),
            thread: Some(thread),
        })
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        drop(self.queue.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn write_all(mut connection: Connection, entries: &Receiver<Entry>) {
    while let Ok(first) = entries.recv() {
        let batch: Vec<_> = std::iter::once(first)
            .chain(entries.try_iter().take(BATCH))
            .collect();
        if let Err(error) = write(&mut connection, &batch) {
            for (_, event) in &batch {
                tracing::error!(%error, ?event, "audit event not stored");
            }
        }
    }
}

fn write(connection: &mut Connection, batch: &[Entry]) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    {
        let mut insert = transaction.prepare_cached(
            "INSERT INTO audit (at, user, event, detail) VALUES (?1, ?2, ?3, ?4)",
        )?;
        for (at, event) in batch {
            insert.execute(params![
                at.as_millisecond(),
                event.user.as_ref().map(UserName::as_str),
                event.event,
                event.detail.to_string()
            ])?;
        }
    }
    transaction.commit()
}

impl Store {
    /// Remembers an event. Never waits; an event that finds the queue full goes
    /// to the log instead.
    pub fn audit(&self, event: AuditEvent) {
        let Some(queue) = &self.0.audit.queue else {
            return;
        };
        if let Err(TrySendError::Full((_, event)) | TrySendError::Disconnected((_, event))) =
            queue.try_send((now(), event))
        {
            tracing::error!(?event, "audit event not stored: queue full");
        }
    }

    /// The latest events, newest first.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn audit_log(&self, most: u32) -> Result<Vec<AuditRecord>, StoreError> {
        self.write("read audit log", move |transaction| {
            let mut statement = transaction
                .prepare("SELECT at, user, event, detail FROM audit ORDER BY id DESC LIMIT ?1")?;
            let mut rows = statement.query([most])?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                let detail: String = row.get(3)?;
                found.push(AuditRecord {
                    at: timestamp(row.get(0)?)?,
                    user: row.get(1)?,
                    event: row.get(2)?,
                    detail: serde_json::from_str(&detail).unwrap_or(Value::String(detail)),
                });
            }
            Ok(found)
        })
        .await
    }
}
