//! The same with virtual machines, which boot emulated: few rounds, with longer pauses.

use vendetta::provider::QemuSettings;
use vendetta_proto::spec::{Accel, ProjectConfig, ProviderKind, QemuConfig};
use vendetta_tests::{MachineImage, full};

use crate::{Place, killed_at_random};

/// The gateway's settings: the tests' images may be used, wherever they are.
pub fn settings() -> QemuSettings {
    QemuSettings {
        image_dirs: vec!["/".into()],
        ..QemuSettings::default()
    }
}

/// What a workspace of a provider has to say of itself.
pub fn config(provider: ProviderKind) -> ProjectConfig {
    let mut config = ProjectConfig::default();
    if provider == ProviderKind::Qemu {
        config.qemu = Some(QemuConfig {
            image: MachineImage::Small.path().display().to_string(),
            cpu: Some(1),
            memory: Some("256M".parse().unwrap()),
            disk: Some("1G".parse().unwrap()),
            accel: Some(Accel::Tcg),
        });
    }
    config
}

/// Milliseconds in which a machine boots and shuts down again; none: any other
/// environment, which takes less.
pub fn longest_pause(provider: ProviderKind) -> Option<u64> {
    (provider == ProviderKind::Qemu).then_some(15_000)
}

/// A pattern of the processes of machines, QEMU's own: its command line begins with
/// its name, that of the shell which waits for it does not.
pub fn processes(workspaces: &str) -> String {
    format!("^qemu-system-[^ ]* .*-pidfile {workspaces}/")
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_random_points_a_machine_is_neither_lost_nor_left_behind() {
    let place = Place::new(ProviderKind::Qemu);
    killed_at_random(place, if full() { 30 } else { 5 }).await;
}
