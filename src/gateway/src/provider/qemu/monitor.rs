//! A word with QEMU's monitor (QMP, docs/interop/qmp-spec of QEMU). It serves one
//! client at a time, so each word has a connection of its own, which ends with it.

use std::io;
use std::path::Path;
use std::time::Duration;

use qapi::futures::QmpStreamTokio;
use qapi::qmp;
use tokio::time::timeout;

use crate::node::NodeTransport;

/// How long it may take to answer.
const LIMIT: Duration = Duration::from_secs(10);

/// Waits until it answers.
///
/// # Errors
/// When it does not.
pub(super) async fn ask(node: &dyn NodeTransport, socket: &Path) -> io::Result<()> {
    tell(node, socket, qmp::query_status {}).await
}

/// Presses the power button; the machine's system decides what that means.
///
/// # Errors
/// When it cannot be told.
pub(super) async fn power_down(node: &dyn NodeTransport, socket: &Path) -> io::Result<()> {
    tell(node, socket, qmp::system_powerdown {}).await
}

/// Ends QEMU, whatever the machine does; its disks are as after a power failure.
///
/// # Errors
/// When it cannot be told.
pub(super) async fn quit(node: &dyn NodeTransport, socket: &Path) -> io::Result<()> {
    tell(node, socket, qmp::quit {}).await
}

async fn tell<C>(node: &dyn NodeTransport, socket: &Path, command: C) -> io::Result<()>
where
    C: qmp::QmpCommand + Send,
    C::Ok: Send,
{
    let told = async {
        let stream = node.open_unix(socket).await.map_err(io::Error::other)?;
        let (read, write) = tokio::io::split(stream);
        let greeted = QmpStreamTokio::open_split(read, write).await?;
        let mut monitor = greeted.negotiate().await?;
        monitor.execute(command).await.map_err(io::Error::other)?;
        Ok(())
    };
    timeout(LIMIT, told)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
